"""Where a model lies on the machine of whoever asks."""

from __future__ import annotations

from pathlib import Path

from ..common.config.run import ModelConfig
from ..common.errors import ModelError

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""Files of a model that are read here: weights, settings, tokenizer."""


def local_folder(model: ModelConfig) -> str:
    """The folder itself, or the hub's files at `revision`, downloaded unless this machine has them.

    vLLM and the mixture read plain folders, so that all parts of a run see one revision. Raises ModelError.
    """
    if Path(model.path).is_dir():
        return model.path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(model.path, revision=model.revision, allow_patterns=list(WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        raise ModelError(
            f"{model.path} is no folder on this machine, and the hub does not give it at revision"
            f" {model.revision or 'main'}: {fault}; on a cluster a folder must be on every machine"
        ) from fault
