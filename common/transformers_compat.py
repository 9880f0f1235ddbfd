"""All of transformers that its documentation does not promise, under names of our own.

It is imported only when something is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import compat

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

LIBRARY = "transformers"

_CONFIG = "transformers.configuration_utils.PreTrainedConfig"
_CAUSAL_LMS = "transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING"
_ATTENTION = "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS"
_MASKS = "transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS"
_RENAMINGS = "transformers.conversion_mapping.get_model_conversion_mapping"
_LOAD = "transformers.core_model_loading.convert_and_load_state_dict_in_model"
_LOAD_SETTINGS = "transformers.modeling_utils.LoadStateDictConfig"
_MODEL = "transformers.modeling_utils.PreTrainedModel"
_REVERT = "transformers.core_model_loading.revert_weight_conversion"

REQUIRED: tuple[str, ...] = (
    f"{_CONFIG}._attn_implementation",
    _CAUSAL_LMS,
    _ATTENTION,
    f"{_ATTENTION}.register",
    _MASKS,
    f"{_MASKS}.register",
    _RENAMINGS,
    _LOAD,
    _LOAD_SETTINGS,
    f"{_MODEL}._adjust_missing_and_unexpected_keys",
    _REVERT,
)
OPTIONAL: tuple[str, ...] = ("transformers.models.llama.modeling_llama.eager_attention_forward",)
"""What most families have beside their classes (here one of them). Without it, no rows are shared."""


def attention_kind(config: PretrainedConfig) -> str | None:
    """The name of the attention that models of this config compute with."""
    return compat.member(LIBRARY, config, f"{_CONFIG}._attn_implementation")


def set_attention_kind(config: PretrainedConfig, name: str | None) -> None:
    """Compute with the attention of this name from now on."""
    compat.member(LIBRARY, config, f"{_CONFIG}._attn_implementation")
    config._attn_implementation = name


def exact_attention(config: PretrainedConfig) -> str | None:
    """The attention to load a model of this config with; None = transformers' choice.

    That is mostly torch's own, which has no cap on scores and leaves it out without a word.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def as_saved(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's parameters by the names, and in the pieces, that its checkpoints have.

    Transformers holds the experts of a layer as one tensor and saves them one by one; other libraries read
    what is saved. Pieces are views where they can be.
    """
    return compat.resolve(LIBRARY, _REVERT)(model, dict(tensors))


def register_attention(name: str, function: Callable[..., Any], masked_like: str) -> None:
    """Enter a function as attention of this name, with masks as those of another kind."""
    masks = compat.resolve(LIBRARY, _MASKS)
    compat.resolve(LIBRARY, _ATTENTION).register(name, function)
    masks.register(name, masks[masked_like])


def own_attention(name: str, module: nn.Module) -> Callable[..., Any]:
    """The function of this name for a layer; eager ones are not registered but lie beside the layer's class.

    Raises AttributeError for an eager one that a family does not have.
    """
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return compat.resolve(LIBRARY, _ATTENTION)[name]


def causal_lm_classes(config: PretrainedConfig) -> set[str]:
    """Names of the classes that AutoModelForCausalLM opens a config of this type with; may be none."""
    found = compat.resolve(LIBRARY, _CAUSAL_LMS).get(type(config), None)
    classes = found if isinstance(found, tuple) else (found,)
    return {one.__name__ for one in classes if one is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How the tensors of a checkpoint go into a model; names are the model's."""

    missing: tuple[str, ...]
    """Of the model, and not in the checkpoint. A tied one is not missing if the other is there."""
    unexpected: tuple[str, ...]
    """Of the checkpoint, and not in the model; without those that the family is known to leave out."""
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, shape in the checkpoint, shape in the model."""
    unconverted: tuple[str, ...]
    """Made of several tensors of the checkpoint that do not go together."""
    both_tied: tuple[tuple[str, str], ...]
    """Pairs that the config ties, and the checkpoint has both of."""


def fit_checkpoint(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> Fit:
    """Load a checkpoint of which only names and shapes are known, with all of transformers' own renaming.

    `model` lies on the meta device, and is of no further use.
    """
    import torch

    settings = compat.resolve(LIBRARY, _LOAD_SETTINGS)(
        device_map={"": torch.device("meta")},
        ignore_mismatched_sizes=True,
        weight_mapping=compat.resolve(LIBRARY, _RENAMINGS)(model),
    )
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with _silence():
        info, _ = compat.resolve(LIBRARY, _LOAD)(model=model, state_dict=state, load_config=settings)
        pairs = tuple(
            pair for pair in model.all_tied_weights_keys.items() if not info.missing_keys.intersection(pair)
        )
        model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        adjust = compat.member(LIBRARY, model, f"{_MODEL}._adjust_missing_and_unexpected_keys")
        adjust(info)
    return Fit(
        missing=tuple(sorted(info.missing_keys - info.conversion_errors.keys())),
        unexpected=tuple(sorted(info.unexpected_keys)),
        misshaped=tuple(
            sorted((name, tuple(given), tuple(own)) for name, given, own in info.mismatched_keys)
        ),
        unconverted=tuple(sorted(info.conversion_errors)),
        both_tied=pairs,
    )


@contextmanager
def _silence() -> Iterator[None]:
    """No progress bar and no warnings of transformers: what it finds is told by us."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
