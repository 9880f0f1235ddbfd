"""What a model on disk or on the hub is, read without loading its weights."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.config.run import ModelConfig
from ...common.errors import Fault, InputError, ModelError, collect_error, told
from ...common.process import collector_paused
from ...common.transformers_compat import causal_lm_classes
from . import families

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


PROBE = "Hello,  World!\nÀ l'été 2026: 3.14 + 42 = ?\n\n\tif x<=y: 你好 🙂"
"""A text that tokenizers of one vocabulary and different rules split differently."""


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
    shape: str
    """All that its config says but its name: models of one shape can hold each other's weights."""
    engine_refusal: str | None = None
    """Why no engine takes it, as the rest of a sentence."""

    @property
    def head_parameters(self) -> int:
        """Parameters of the output layer."""
        return self.vocabulary * self.hidden


def inspect_model(
    model: ModelConfig, name: str, found: list[InputError]
) -> tuple[ModelFacts | None, PreTrainedTokenizerBase | None]:
    """Facts and tokenizer of a model that `name` stands for; what is wrong with either goes into `found`."""
    facts = collect_error(found, describe_model, model, f"{name}.path")
    if facts is None and not Path(model.path).is_dir():
        return None, None  # one fault says that it is not there
    return facts, collect_error(found, load_tokenizer, model, f"{name}.path")


def describe_model(model: ModelConfig, key: str) -> ModelFacts:
    """Facts about the model that the setting `key` names. Raises ModelError if it is of no use in a run."""
    config = _read_config(model, key)
    if (reason := families.refusal(config)) is not None:
        raise ModelError(Fault(key, model.path, reason, families.WAY_OUT))
    _check_weights(model, key)
    try:
        return _facts(model, config)
    except Exception as error:  # a family may lack any of the settings that are read here
        reason = f"is of a family ({config.model_type}) that is not understood here: {told(error)}"
        raise ModelError(Fault(key, model.path, reason, families.WAY_OUT)) from error


def _facts(model: ModelConfig, config: PretrainedConfig) -> ModelFacts:
    shape = _shape_of(config)
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
        context=families.exact_context(config) or _first(sizes, "max_position_embeddings"),
        tied=output is not None and output.weight is empty.get_input_embeddings().weight,
        shape=shape,
        engine_refusal=families.engine_refusal(config),
    )


def _first(config: PretrainedConfig, *names: str) -> int | None:
    return next((value for name in names if (value := getattr(config, name, None))), None)


def _read_config(model: ModelConfig, key: str) -> PretrainedConfig:
    from transformers import AutoConfig

    folder = Path(model.path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            Fault(key, model.path, "holds no config.json", "give a folder saved with save_pretrained")
        )
    try:
        config = AutoConfig.from_pretrained(model.path, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if not folder.exists() and (folder.is_absolute() or model.path.startswith(".")):
            raise ModelError(_no_folder(folder, key, model.path)) from error
        raise ModelError(
            Fault(
                key,
                model.path,
                f"is not a folder here, and the hub does not give it: {_first_line(error)}",
                "give a local folder or a public name (models that bring their own code are refused)",
            )
        ) from error
    named, names = config.architectures or [], causal_lm_classes(config)
    if not names or config.is_encoder_decoder or (named and not names.intersection(named)):
        raise ModelError(
            Fault(
                key,
                model.path,
                f"is {', '.join(named) or config.model_type}, not a causal language model",
                "give one that AutoModelForCausalLM opens",
            )
        )
    return config


def _no_folder(folder: Path, key: str, path: str) -> Fault:
    if not folder.parent.is_dir():
        way_out = f"{folder.parent} does not exist either"
    else:
        close = difflib.get_close_matches(folder.name, [p.name for p in folder.parent.iterdir()], 1)
        way_out = f"did you mean {folder.parent / close[0]}?" if close else "give a folder that does"
    return Fault(key, path, "is a folder that does not exist", way_out)


def _check_weights(model: ModelConfig, key: str) -> None:
    names = _file_names(model)
    if names is None or any(name.endswith(".safetensors") for name in names):
        return
    if pickles := [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        raise ModelError(
            Fault(
                key,
                model.path,
                f"has its weights only as {pickles[0]}, a pickle, which could run foreign code",
                "load it once yourself and save_pretrained it, which writes safetensors",
            )
        )
    raise ModelError(
        Fault(key, model.path, "holds no weights (no .safetensors file)", "give a folder that does")
    )


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


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _shape_of(config: PretrainedConfig) -> str:
    values = config.to_dict()
    names = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    return json.dumps({key: values[key] for key in sorted(values.keys() - set(names))}, default=str)


def load_tokenizer(model: ModelConfig, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that the setting `key` names. Raises ModelError if there is none."""
    from transformers import AutoTokenizer

    way_out = "save the tokenizer beside the model"
    try:
        found = AutoTokenizer.from_pretrained(model.path, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"has no tokenizer that can be read: {_first_line(error)}"
        raise ModelError(Fault(key, model.path, reason, way_out)) from error
    # Where its files are missing, transformers 5.19 makes an empty one for some families.
    if not set(found.get_vocab()) - set(found.all_special_tokens):
        raise ModelError(Fault(key, model.path, "has no tokenizer files", way_out))
    return found


def shared_vocabulary(
    student: ModelFacts,
    teacher: ModelFacts | None,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    names: tuple[str, str] = ("student", "teacher"),
) -> int:
    """Words that both models and both tokenizers have: ids below it are the run's vocabulary.

    `names` are what the settings call the two. Raises ModelError if an id stands for different tokens, or a
    text is split differently.
    """
    sizes = [student.vocabulary, len(student_tokenizer)]
    if teacher is not None and teacher_tokenizer is not None:
        sizes += [teacher.vocabulary, len(teacher_tokenizer)]
        compare_tokenizers(student_tokenizer, teacher_tokenizer, min(sizes), names)
    return min(sizes)


def compare_tokenizers(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    vocabulary: int,
    names: tuple[str, str] = ("student", "teacher"),
) -> None:
    """Raises ModelError with the first token at which two tokenizers differ below `vocabulary`."""

    def differ(how: str) -> ModelError:
        return ModelError(
            Fault(
                f"{names[1]}.path",
                teacher.name_or_path,
                f"and {names[0]}.path = {student.name_or_path} {how}",
                "use models of one tokenizer, for example of one family",
                also=(f"{names[0]}.path",),
            )
        )

    ours, theirs = _by_id(student.get_vocab()), _by_id(teacher.get_vocab())
    for id in range(vocabulary):
        if ours.get(id) != theirs.get(id):
            raise differ(
                f"have different tokenizers: token {id} is {ours.get(id)!r} for {names[0]} and"
                f" {theirs.get(id)!r} for {names[1]}"
            )
    one, two = student(PROBE)["input_ids"], teacher(PROBE)["input_ids"]
    if one != two:
        pairs = zip(one, two, strict=False)
        index = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))
        ours_here = student.convert_ids_to_tokens(one[index : index + 3])
        theirs_here = teacher.convert_ids_to_tokens(two[index : index + 3])
        raise differ(
            f"have the same tokens but split text differently: {ours_here} for {names[0]} is"
            f" {theirs_here} for {names[1]}"
        )


def _by_id(vocabulary: Mapping[str, int]) -> dict[int, str]:
    return {id: token for token, id in vocabulary.items()}
