"""What a model on disk or on the hub is, read without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.config.run import ModelConfig
from ...common.errors import Fault, InputError, ModelError, collect_error, merge_errors, told
from . import families
from .checkpoint import pointer_faults, read_headers
from .config_file import empty_network, is_quantised, read_config
from .tensors import tensor_faults
from .token_ids import check_ids, tokenizer_faults
from .tokenizer_files import broken_file, load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


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
    thresholds: tuple[int, ...]
    """Tokens from which on positions are treated in another way: sliding windows, original rope lengths."""
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
    model: ModelConfig, name: str, found: list[InputError], *, quantised: bool = False
) -> tuple[ModelFacts | None, PreTrainedTokenizerBase | None]:
    """Facts and tokenizer of a model that `name` stands for; what is wrong with either goes into `found`.

    It may be `quantised` if only transformers reads it, without training it.
    """
    key = f"{name}.path"
    facts = collect_error(found, describe_model, model, key, quantised=quantised)
    if facts is None and not Path(model.path).is_dir():
        return None, None  # one fault says that it is not there
    if facts is None and pointer_faults(model, key):
        return None, None  # told, and the tokenizer would be told a second time
    unreadable: list[InputError] = []
    tokenizer = collect_error(unreadable, load_tokenizer, model, key)
    if unreadable and (
        broken_file(Path(model.path)) or collect_error([], read_config, model, key, quantised=True)
    ):
        found += unreadable  # else it is the config, told above, that is in its way too
    if facts is None or tokenizer is None:
        return facts, tokenizer
    if faults := tokenizer_faults(key, model.path, tokenizer, facts.vocabulary):
        found.append(ModelError(*faults))
    return facts, tokenizer


def describe_model(model: ModelConfig, key: str, *, quantised: bool = False) -> ModelFacts:
    """Facts about the model that the setting `key` names. Raises ModelError if it is of no use in a run.

    The headers of its weights are held against its config.json; no tensor is read, but for two that the
    config says are one.
    """
    if pointers := pointer_faults(model, key):
        raise ModelError(*pointers)
    found: list[InputError] = []
    config = collect_error(found, read_config, model, key, quantised=quantised)
    if config is not None and (reason := families.refusal(config)) is not None:
        raise ModelError(Fault(key, model.path, reason, families.WAY_OUT))
    missing = config is None and not Path(model.path).is_dir()
    headers = None if missing else collect_error(found, read_headers, model, key)
    if config is not None:
        collect_error(found, check_ids, model, key, config)
    if found or config is None:
        raise merge_errors(found)
    network = empty_network(config, model, key)
    try:
        facts = _facts(model, config, network)
    except Exception as error:  # a family may lack any of the settings that are read there
        reason = f"is of a family ({config.model_type}) that is not understood here: {told(error)}"
        raise ModelError(Fault(key, model.path, reason, families.WAY_OUT)) from error
    if headers is not None:
        faults = tensor_faults(model, key, network, headers, quantised=is_quantised(config))
        if faults:
            raise ModelError(*faults)
    return facts


def _facts(model: ModelConfig, config: PretrainedConfig, network: PreTrainedModel) -> ModelFacts:
    sizes = config.get_text_config()
    heads = sizes.num_attention_heads
    output = network.get_output_embeddings()
    return ModelFacts(
        path=model.path,
        family=config.model_type,
        parameters=sum(p.numel() for p in network.parameters()),
        vocabulary=sizes.vocab_size if output is None else output.weight.shape[0],
        hidden=sizes.hidden_size,
        intermediate=_first(sizes, "intermediate_size", "ffn_dim", "n_inner") or 4 * sizes.hidden_size,
        layers=sizes.num_hidden_layers,
        heads=heads,
        kv_heads=_first(sizes, "num_key_value_heads") or heads,
        head_dim=_first(sizes, "head_dim") or sizes.hidden_size // heads,
        context=families.exact_context(config) or _first(sizes, "max_position_embeddings"),
        thresholds=_thresholds(sizes),
        tied=output is not None and output.weight is network.get_input_embeddings().weight,
        shape=_shape_of(config),
        engine_refusal=families.engine_refusal(config),
    )


def _thresholds(config: PretrainedConfig) -> tuple[int, ...]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, Mapping))]
    found = [one.get("original_max_position_embeddings") for one in kinds]
    found += [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return tuple(sorted({int(tokens) for tokens in found if isinstance(tokens, int | float) and tokens > 0}))


def _first(config: PretrainedConfig, *names: str) -> int | None:
    return next((value for name in names if (value := getattr(config, name, None))), None)


def _shape_of(config: PretrainedConfig) -> str:
    values = config.to_dict()
    names = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    return json.dumps({key: values[key] for key in sorted(values.keys() - set(names))}, default=str)


def shared_vocabulary(
    student: ModelFacts,
    teacher: ModelFacts | None,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    names: tuple[str, str] = ("student", "teacher"),
) -> int:
    """Words that both models and both tokenizers have: ids below it are the run's vocabulary.

    `names` are what the settings call the two. Raises ModelError if an id stands for different tokens, a text
    is split differently, or the student's tokenizer, which tokenises all data, knows more than the teacher.
    """
    sizes = [student.vocabulary, len(student_tokenizer)]
    if teacher is not None and teacher_tokenizer is not None:
        sizes += [teacher.vocabulary, len(teacher_tokenizer)]
        compare_tokenizers(student_tokenizer, teacher_tokenizer, min(sizes), names)
        owner = f"{names[1]}.path = {teacher.path}"
        if faults := tokenizer_faults(
            f"{names[0]}.path", student.path, student_tokenizer, teacher.vocabulary, owner
        ):
            raise ModelError(*faults)
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
