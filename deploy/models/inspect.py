"""What a model on disk or on the hub is, read without its weights; and making small models from others."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.config.run import ModelConfig
from ...common.errors import ModelError
from ...common.process import collector_paused

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


PROBE = "Hello,  World!\nÀ l'été 2026: 3.14 + 42 = ?\n\n\tif x<=y: 你好 🙂"
"""A text on which tokenizers of one vocabulary and different rules come apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of a causal language model, counted without loading it."""

    path: str
    family: str
    """model_type of transformers, such as llama."""
    parameters: int
    """Exact, shared ones once."""
    vocabulary: int
    """Rows of the output layer, padding included."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int | None
    """Most tokens of prompt and answer; None = no limit in its settings."""
    tied: bool
    """Whether the output layer is the embedding."""

    @property
    def head_parameters(self) -> int:
        """Parameters of the output layer."""
        return self.vocabulary * self.hidden


def describe_model(model: ModelConfig, key: str) -> ModelFacts:
    """Facts about student or teacher (`key`). Raises ModelError if it cannot play any part in a run."""
    config = _read_config(model, key)
    _check_weights(model, key)
    with collector_paused():
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    sizes = config.get_text_config()
    heads = sizes.num_attention_heads
    output = empty.get_output_embeddings()
    vocabulary = sizes.vocab_size if output is None else output.weight.shape[0]
    return ModelFacts(
        path=model.path,
        family=config.model_type,
        parameters=sum(p.numel() for p in empty.parameters()),
        vocabulary=vocabulary,
        hidden=sizes.hidden_size,
        intermediate=_first(sizes, "intermediate_size", "ffn_dim", "n_inner") or 4 * sizes.hidden_size,
        layers=sizes.num_hidden_layers,
        heads=heads,
        kv_heads=_first(sizes, "num_key_value_heads") or heads,
        head_dim=_first(sizes, "head_dim") or sizes.hidden_size // heads,
        context=_first(sizes, "max_position_embeddings"),
        tied=output is not None and output.weight is empty.get_input_embeddings().weight,
    )


def _first(config: PretrainedConfig, *names: str) -> int | None:
    return next((value for name in names if (value := getattr(config, name, None))), None)


def _read_config(model: ModelConfig, key: str) -> PretrainedConfig:
    from transformers import AutoConfig, AutoModelForCausalLM

    where = f"{key}.path = {model.path}"
    folder = Path(model.path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{where} holds no config.json; give a folder saved with save_pretrained")
    try:
        config = AutoConfig.from_pretrained(model.path, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as fault:
        if not folder.exists() and (folder.is_absolute() or model.path.startswith(".")):
            raise ModelError(f"{where}: there is no such folder{_neighbours(folder)}") from fault
        raise ModelError(
            f"{where} is no folder here, and the hub does not give it: {_short(fault)}; give a local folder"
            " or a public name (models that bring their own code are refused)"
        ) from fault
    known: Any = AutoModelForCausalLM._model_mapping  # type: ignore[attr-defined]
    named = config.architectures or []
    classes = known.get(type(config), None)
    names = {c.__name__ for c in (classes if isinstance(classes, tuple) else (classes,)) if c is not None}
    if not names or config.is_encoder_decoder or (named and not names.intersection(named)):
        raise ModelError(
            f"{where} is {', '.join(named) or config.model_type}, not a causal language model; give one that"
            " AutoModelForCausalLM opens"
        )
    return config


def _neighbours(folder: Path) -> str:
    if not folder.parent.is_dir():
        return f"; {folder.parent} does not exist either"
    close = difflib.get_close_matches(folder.name, [p.name for p in folder.parent.iterdir()], 1)
    return f"; did you mean {folder.parent / close[0]}?" if close else ""


def _check_weights(model: ModelConfig, key: str) -> None:
    names = _file_names(model)
    if names is None or any(name.endswith(".safetensors") for name in names):
        return
    where = f"{key}.path = {model.path}"
    if pickles := [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        raise ModelError(
            f"{where} has its weights only as {pickles[0]}, a pickle, which could run foreign code; load it"
            " once yourself and save_pretrained it, which writes safetensors"
        )
    raise ModelError(f"{where} holds no weights (no .safetensors file)")


def _file_names(model: ModelConfig) -> list[str] | None:
    """Files of the model; None where the hub cannot be asked."""
    folder = Path(model.path)
    if folder.is_dir():
        return [p.name for p in folder.iterdir()]
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return list_repo_files(model.path, revision=model.revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return None


def _short(fault: BaseException) -> str:
    return str(fault).strip().splitlines()[0]


def shape_of(model: ModelConfig) -> str:
    """All that a model's config says but its name: two of one shape can hold each other's weights."""
    from transformers import AutoConfig

    told = AutoConfig.from_pretrained(model.path, revision=model.revision).to_dict()
    names = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    return json.dumps({key: told[key] for key in sorted(told.keys() - set(names))}, default=str)


def load_tokenizer(model: ModelConfig, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of student or teacher. Raises ModelError if there is none."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(model.path, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ModelError(
            f"{key}.path = {model.path} has no tokenizer that can be read: {_short(fault)}; save the"
            " tokenizer beside the model"
        ) from fault
    # Where its files are missing, transformers 5.19 makes an empty one for some families.
    if not set(found.get_vocab()) - set(found.all_special_tokens):
        raise ModelError(
            f"{key}.path = {model.path} has no tokenizer files; save the tokenizer beside the model"
        )
    return found


def shared_vocabulary(
    student: ModelFacts,
    teacher: ModelFacts | None,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
) -> int:
    """Words that both models and both tokenizers have: ids below it are the run's vocabulary.

    Raises ModelError if an id stands for different tokens, or a text is cut differently.
    """
    sizes = [student.vocabulary, len(student_tokenizer)]
    if teacher is not None and teacher_tokenizer is not None:
        sizes += [teacher.vocabulary, len(teacher_tokenizer)]
        compare_tokenizers(student_tokenizer, teacher_tokenizer, min(sizes))
    return min(sizes)


def compare_tokenizers(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, vocabulary: int
) -> None:
    """Raises ModelError with the first token at which two tokenizers differ below `vocabulary`."""
    ours, theirs = _by_id(student.get_vocab()), _by_id(teacher.get_vocab())
    way_out = "; distil between models of one tokenizer, for example of one family"
    for id in range(vocabulary):
        if ours.get(id) != theirs.get(id):
            raise ModelError(
                f"student and teacher have different tokenizers: token {id} is {ours.get(id)!r} for the"
                f" student and {theirs.get(id)!r} for the teacher{way_out}"
            )
    one, two = student(PROBE)["input_ids"], teacher(PROBE)["input_ids"]
    if one != two:
        pairs = zip(one, two, strict=False)
        index = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))
        ours_here = student.convert_ids_to_tokens(one[index : index + 3])
        theirs_here = teacher.convert_ids_to_tokens(two[index : index + 3])
        raise ModelError(
            "student and teacher have the same tokens but cut text differently: where the student reads"
            f" {ours_here} the teacher reads {theirs_here}{way_out}"
        )


def _by_id(vocabulary: Mapping[str, int]) -> dict[int, str]:
    return {id: token for token, id in vocabulary.items()}
