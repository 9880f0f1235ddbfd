"""The last screen of the demonstration says what the run shows and what it does not."""

from __future__ import annotations

import io
from pathlib import Path

from minillm_ray.actors.text_sink import AnswerScore
from minillm_ray.deploy.demo.last_screen import CONTROL, MODELS, OURS, START, last_screen, verdicts
from minillm_ray.deploy.training.measurement import Measurement
from rich.console import Console


def measured(kl: float, rouge: float) -> Measurement:
    scores = [
        AnswerScore(
            prompt_id=f"heldout/{n}",
            sample=0,
            rouge_l=rouge,
            exact_match=rouge,
            accuracy=None,
            tokens=2,
            finished=True,
            repeated_grams=0.0,
            grams=1.0,
        )
        for n in range(20)
    ]
    return Measurement.of(scores, {(s.prompt_id, 0): 2 * kl for s in scores}, ["[b]one[/b]", "two", "three"])


def models(start: tuple, control: tuple, ours: tuple) -> dict[str, Measurement]:
    return {"teacher": measured(0, 95)} | {
        name: measured(*values) for name, values in ((START, start), (CONTROL, control), (OURS, ours))
    }


def test_each_claim_is_judged_by_the_numbers():
    good = verdicts(models(start=(1.0, 50), control=(0.6, 80), ours=(0.4, 70)))
    assert all("holds" in line for line in good)
    assert "the control is ahead" in good[2]
    bad = verdicts(models(start=(1.0, 50), control=(0.3, 52), ours=(0.6, 53)))
    assert all("does not hold" in line for line in bad)


def test_answers_are_shown_as_they_are_and_the_commands_name_what_was_made():
    shown = io.StringIO()
    screen = last_screen(Path("runs/demo"), models((1, 50), (0.6, 80), (0.4, 70)), ["p [0]", "q", "r"], 300)
    Console(file=shown, width=160).print(screen)
    text = shown.getvalue()
    assert "[b]one[/b]" in text
    assert "p [0]" in text
    assert "smollm2_start.yaml" in text
    assert "runs/demo/best" in text
    assert all(name in text for name in MODELS)
