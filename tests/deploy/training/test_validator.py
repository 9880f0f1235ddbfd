"""Which student is the best so far, by what was measured of it."""

from __future__ import annotations

import io
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minillm_ray.common.config.run import ModelConfig, RunConfig, ValidationConfig
from minillm_ray.common.types import AnswerMeasure
from minillm_ray.deploy.cli.progress import Progress
from minillm_ray.deploy.training import validator as validator_module
from minillm_ray.deploy.training.metrics_log import MetricsLog
from minillm_ray.deploy.training.run_dir import RunDir, RunState
from minillm_ray.deploy.training.validator import Validator, is_better
from rich.console import Console


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_no_number_never_wins_and_always_loses(sign: int) -> None:
    for broken in (nan, inf, -inf):
        assert not is_better(broken, None, sign)
        assert not is_better(broken, 1.0, sign)
        assert is_better(1.0, broken, sign)  # of a checkpoint from before
    assert is_better(1.0, None, sign)
    assert is_better(2.0, 1.0, sign) is (sign > 0)
    assert is_better(1.0, 2.0, sign) is (sign < 0)
    assert not is_better(1.0, 1.0, sign)


def answer(nll: float) -> AnswerMeasure:
    return AnswerMeasure(
        prompt_id="validation/0", sample=0, tokens=1, nll=nll, entropy=0.0, reverse_kl=None, forward_kl=None,
        overlap=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "kept", "best"),
    [
        pytest.param([nan, 2.0, 3.0, 1.0, nan], [1, 3], 3, id="nan at the start"),
        pytest.param([2.0, -inf, inf, nan, 1.5], [0, 4], 4, id="no numbers later"),
        pytest.param([nan, inf], [2], 2, id="none that is a number, so the last student"),
    ],
)
def test_the_best_student_is_one_that_could_be_measured(
    losses: list[float], kept: list[int], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, exported = RunState(), list[int]()
    folder = RunDir(tmp_path)

    def export(to: Path, *_: object) -> None:
        exported.extend([state.step] * (to == folder.best))

    measures = iter([[answer(nll)] for nll in losses])
    learner = SimpleNamespace(export=export, measure=lambda items: next(measures))
    streams: Any = SimpleNamespace(validation_answers=["x"], put=lambda passages: [], answer_format=None)
    config = RunConfig(student=ModelConfig(path="student"), validation=ValidationConfig(metric="loss"))
    monkeypatch.setattr(validator_module, "write_card", lambda *_: None)
    workers: Any = SimpleNamespace(learner=learner)
    progress = Progress(Console(file=io.StringIO()))
    validator = Validator(config, streams, workers, folder, MetricsLog(tmp_path), progress, state)
    for _ in losses:
        validator.validate()
        state.step += 1
    validator.save_last()
    assert (exported, state.best_step) == (kept, best)
