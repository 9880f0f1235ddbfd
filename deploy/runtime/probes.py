"""Whether all processes of a run compute the same log-probs: probes, and the comparison of what each says.

Pure functions: who computes the log-probs is decided elsewhere (`parity`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...common.types import Floats, Ids, Passage

SHORT, ORDINARY = 3, 24
"""Answer tokens of the shortest probe, and of the others."""
BEYOND = 8
"""Tokens by which a probe goes beyond a window or an original length."""
EXACT, INEXACT = 1e-3, 0.2
"""Most nats by which a log-prob may differ: where all sides compute in float32, and where one does not."""
REFEREE = "referee"
"""The plain forward pass that the others are compared with, where it could be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLogprobs:
    """What one process says of the probes by one model."""

    process: str
    """Such as rollout-0, or `REFEREE`."""
    model: str
    """student or teacher."""
    dtype: str
    """Type of the model's weights there."""
    logprobs: Sequence[Floats]
    """[T] of each probe, in nats at temperature 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far a process is from what it is compared with."""

    process: str
    model: str
    against: str
    """The process that it is compared with."""
    mean: float
    """Mean |difference| in nats, over all tokens of all probes."""
    largest: float
    within: float
    """Share of tokens whose difference is at most the tolerance."""
    probe: str
    """The probe of the largest difference."""
    agrees: bool

    def __str__(self) -> str:
        return (
            f"{self.process} ({self.model}) against {self.against}: {self.within:.1%} of tokens within the"
            f" tolerance, mean {self.mean:.2g}, largest {self.largest:.2g} nats (in {self.probe})"
        )


def make_probes(texts: Sequence[Ids], *, longest: int, thresholds: Sequence[int] = ()) -> list[Passage]:
    """Answers that every process reads: ordinary ones, one twice, a very short one, and long ones.

    `texts` are tokens of the run's own data [any length], of which probes are cut. None is longer than
    `longest` tokens, prompt and answer together. One goes beyond each of `thresholds` (sliding windows,
    lengths that positions were made for) that a sequence of the run can reach.
    """
    stream = np.concatenate([np.asarray(text, np.int32) for text in texts])
    middle = min(longest, 2 * ORDINARY)
    lengths = {"ordinary-0": middle, "ordinary-1": middle, "short": min(longest, SHORT + 1)}
    reached = [threshold + BEYOND for threshold in thresholds if threshold + 1 < longest]
    lengths |= {f"beyond-{size - BEYOND}": min(size, longest) for size in sorted(set(reached))}
    if not reached:
        lengths["long"] = min(longest, 8 * ORDINARY)
    probes = []
    for number, (name, length) in enumerate(lengths.items()):
        ids = np.resize(np.roll(stream, -7 * number), length)
        answer = min(SHORT if name == "short" else ORDINARY, length - 1)
        probes.append(Passage(prompt_id=f"probe/{name}", prompt_ids=ids[:-answer], answer_ids=ids[-answer:]))
    first = probes[0]
    return [
        *probes,
        Passage(prompt_id="probe/again", prompt_ids=first.prompt_ids, answer_ids=first.answer_ids),
    ]


def tolerated(asked: float | None, *dtypes: str) -> float:
    """Most nats by which log-probs may differ that were computed in these types, unless more is asked for."""
    return asked or (EXACT if set(dtypes) == {"float32"} else INEXACT)


def compare(
    probes: Sequence[Passage],
    readings: Sequence[ProbeLogprobs],
    tolerance: Callable[[ProbeLogprobs, ProbeLogprobs], float],
    within: float,
) -> list[Gap]:
    """How far each process is from the referee or, where a model has none, from the first that has the model.

    `tolerance` gives the nats that two may differ by; `within` is the share of tokens that must keep to it.
    What is not a finite number keeps to nothing.
    """
    found = []
    for model in dict.fromkeys(reading.model for reading in readings):
        of_model = [reading for reading in readings if reading.model == model]
        base = next((one for one in of_model if one.process == REFEREE), of_model[0])
        found += [
            _gap(probes, one, base, tolerance(one, base), within) for one in of_model if one is not base
        ]
    return found


def _gap(
    probes: Sequence[Passage], one: ProbeLogprobs, base: ProbeLogprobs, tolerance: float, within: float
) -> Gap:
    differences = [_differences(*pair) for pair in zip(one.logprobs, base.logprobs, strict=True)]
    whole = np.concatenate(differences)
    worst = int(np.argmax([each.max() for each in differences]))
    fraction = float((whole <= tolerance).mean())
    return Gap(
        process=one.process,
        model=one.model,
        against=base.process,
        mean=float(whole.mean()),
        largest=float(whole.max()),
        within=fraction,
        probe=probes[worst].prompt_id,
        agrees=fraction >= within,
    )


def _differences(one: Floats, other: Floats) -> npt.NDArray[np.float64]:
    finite = np.isfinite(one) & np.isfinite(other)
    gaps = np.abs(np.where(finite, one, 0).astype(np.float64) - np.where(finite, other, 0))
    return np.where(finite, gaps, np.inf)
