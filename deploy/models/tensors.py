"""Whether the tensors of a checkpoint are those of the model that its config.json describes."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from ...common.config.run import ModelConfig
from ...common.errors import Fault
from ...common.transformers_compat import Fit, fit_checkpoint
from .checkpoint import Header, Headers, are_equal, listed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN = ("F64", "F32", "F16", "BF16")
"""Numbers that are weights as they stand; all others need a scale, or some other key to read them."""
MASK = re.compile(r"\.(masked_)?bias$")
"""How older transformers saved the mask of causal attention, which is made anew today."""
SCALE = re.compile(r"_scale(_inv)?$")
"""Ends of names of what fp8 weights are multiplied by."""
WAY_OUT = "give config.json and weights that were saved together"


def tensor_faults(
    model: ModelConfig, key: str, network: PreTrainedModel, headers: Headers, *, quantised: bool
) -> list[Fault]:
    """What is missing, too much or of another shape; `network` on the meta device is used up.

    Of a model that is `quantised` the scales may come with the weights.
    """
    about = partial(Fault, key, model.path)
    parameters = {name for name, _ in network.named_parameters()}
    base = f"{network.base_model_prefix}."
    family = network.config.model_type
    fit = fit_checkpoint(network, {name: header.shape for name, header in headers.items()})
    found = []
    if fit.missing:
        reason = f"lacks {listed(fit.missing)} of the weights that a {family} of its config.json has"
        if fit.missing == ("lm_head.weight",):
            hint = "set tie_word_embeddings to true in config.json if its output layer is its embedding"
            found.append(about(reason, hint))
        else:
            found.append(about(reason, WAY_OUT))
    unexpected = [n for n in fit.unexpected if not _is_mask(n, _in_file(n, base, headers))]
    if quantised:
        unexpected = [name for name in unexpected if not SCALE.search(name)]
    if unexpected:
        reason = f"holds {listed(unexpected)}, which a {family} of its config.json does not have"
        found.append(about(reason, WAY_OUT))
    if fit.misshaped:
        shapes = [f"{name} as {_shape(given)} instead of {_shape(own)}" for name, given, own in fit.misshaped]
        found.append(
            about(f"has weights of other shapes than its config.json says: {listed(shapes)}", WAY_OUT)
        )
    if fit.unconverted:
        reason = f"has tensors that do not make up {listed(fit.unconverted)} of a {family}"
        found.append(about(reason, WAY_OUT))
    if not quantised:
        packed = [
            f"{name} as {header.dtype}"
            for name, header in sorted(headers.items())
            if header.dtype not in PLAIN and _is_weight(name, base, parameters)
        ]
        if packed:
            reason = f"holds {listed(packed)}, and its config.json does not say how to read them"
            found.append(about(reason, "give the model in bfloat16 or float32"))
    return found + _tied_faults(model, key, fit, base, headers)


def _tied_faults(model: ModelConfig, key: str, fit: Fit, base: str, headers: Headers) -> list[Fault]:
    """Of two tensors that the config ties vLLM reads one and transformers both, if they differ."""
    found = []
    off = {name for name, _, _ in fit.misshaped}
    for pair in fit.both_tied:
        if off.intersection(pair):
            continue
        one, other = (_name_in_file(name, base, headers) for name in pair)
        if one is None or other is None or not are_equal(model, headers, one, other):
            reason = (
                f"ties {pair[0]} to {pair[1]} in its config.json, and its weights hold both and they differ"
            )
            way_out = f"set tie_word_embeddings to false there, or take {one or pair[0]} out of the file"
            found.append(Fault(key, model.path, reason, way_out))
    return found


def _name_in_file(name: str, base: str, headers: Headers) -> str | None:
    """What the file calls a tensor of the model; it may leave the base model's prefix out, or add it."""
    return next((n for n in (name, name.removeprefix(base), f"{base}{name}") if n in headers), None)


def _in_file(name: str, base: str, headers: Headers) -> Header | None:
    found = _name_in_file(name, base, headers)
    return headers[found] if found is not None else None


def _is_mask(name: str, header: Header | None) -> bool:
    """Whether it is a triangle of ones [1, 1, n, n], or the number in the place of what it hides."""
    if header is None or not MASK.search(name):
        return False
    return header.shape in ((), (1,)) or (len(header.shape) == 4 and header.shape[:2] == (1, 1))


def _is_weight(name: str, base: str, parameters: set[str]) -> bool:
    named = {name, name.removeprefix(base), f"{base}{name}"}
    return name.endswith(".weight") or not parameters.isdisjoint(named)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
