"""What an evaluation keeps when it stops, is widened or narrowed; who measures is played here."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from minillm_ray.common.config.eval import EvalData, EvalModel
from minillm_ray.common.errors import ConfigError, WorkerDied
from minillm_ray.deploy.api import evaluate
from minillm_ray.deploy.config.loader import load_eval
from minillm_ray.deploy.evaluation import runner as module
from minillm_ray.deploy.evaluation.check import check_eval
from minillm_ray.deploy.evaluation.rows import AnswerFigures, GivenFigures, Part
from minillm_ray.tests.tiny_models import tiny_model

BAD = "falls over"


class Played:
    """Stands for ModelEval: figures without a model, or an actor that died."""

    def __init__(self, config: Any, folder: Any, model: str, task: Any, *_: Any, **__: Any):
        self._part = Part(model=model, data=task.name, metrics=tuple(config.metrics or ()))
        self._ids = [prompt.id for prompt in task.prompts]

    def run(self) -> Part:
        if self._part.model == BAD:
            raise WorkerDied("rollout-0 died")
        self._part.answers = [
            AnswerFigures(
                prompt_id=id, sample=0, seed=10, rouge_l=50.0, exact_match=0.0, accuracy=None, tokens=3,
                finished=True, repeated_grams=0.0, grams=2.0,
            )
            for id in self._ids
        ]  # fmt: skip
        self._part.given = [GivenFigures(prompt_id=id, nll=2.0, tokens=2) for id in self._ids]
        self._part.words = dict.fromkeys(self._ids, 3)
        return self._part


@pytest.fixture
def played(monkeypatch):
    @contextmanager
    def no_workers(*_: Any, **__: Any):
        yield None

    monkeypatch.setattr(module, "ModelEval", Played)
    monkeypatch.setattr(module, "start_eval_workers", no_workers)
    monkeypatch.setattr(module, "cluster", no_workers)
    monkeypatch.setattr(module.Parity, "ask_referee", lambda *_: None)
    monkeypatch.setattr(module.Parity, "check", lambda *_: [])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "model")


def settings(tmp_path: Path, model: Path, names: list[str], *more: str) -> Any:
    data = tmp_path / "asked.jsonl"
    if not data.exists():
        rows = [{"instruction": f"say {n}", "output": "a b c"} for n in range(3)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = ", ".join(f"{{path: {model}, name: {name}}}" for name in names)
    flags = {"data": [str(data)], "output_dir": tmp_path / "out"}
    short = ["max_prompt_tokens=64", "engine.max_new_tokens=8"]
    return load_eval(None, [f"models=[{models}]", *short, *more], flags)


def kept(tmp_path: Path) -> set[tuple[str, str]]:
    return {(row["model"], row["metric"]) for row in json.loads((tmp_path / "out/results.json").read_text())}


def test_rows_of_models_before_one_that_fails_are_in_the_results(played, tmp_path, model):
    with pytest.raises(WorkerDied):
        evaluate(settings(tmp_path, model, ["fine", BAD], "metrics=[rouge_l]"))
    assert kept(tmp_path) == {("fine", "rouge_l")}


def test_rows_stay_while_more_figures_are_measured_of_the_same_model(played, tmp_path, model, monkeypatch):
    evaluate(settings(tmp_path, model, ["fine"], "metrics=[rouge_l]"))
    monkeypatch.setitem(globals(), "BAD", "fine")
    with pytest.raises(WorkerDied):
        evaluate(settings(tmp_path, model, ["fine"], "metrics=[lm_loss]"))
    assert kept(tmp_path) == {("fine", "rouge_l")}


def test_another_call_for_fewer_figures_or_other_models_takes_nothing_away(played, tmp_path, model):
    evaluate(settings(tmp_path, model, ["a", "b"], "metrics=[rouge_l, lm_loss]"))
    again = evaluate(settings(tmp_path, model, ["c"], "metrics=[rouge_l]"))
    both = {(name, metric) for name in ("a", "b") for metric in ("rouge_l", "lm_loss")}
    assert kept(tmp_path) == both | {("c", "rouge_l")}
    compared = {(row["a"], row["b"], row["metric"]) for row in again.comparisons}
    assert {("a", "b", "lm_loss"), ("c", "a", "rouge_l")} <= compared
    assert ("c", "a", "lm_loss") not in compared


def test_engines_may_be_more_or_fewer_than_before(played, tmp_path, model):
    evaluate(settings(tmp_path, model, ["a"], "metrics=[rouge_l]"))
    evaluate(settings(tmp_path, model, ["a"], "metrics=[rouge_l]", "engine.num_engines=2", "engine.chunk=7"))


def test_all_that_is_wrong_with_models_and_data_is_told_at_once_by_the_evaluation_s_names(tmp_path, model):
    config = settings(tmp_path, model, ["fine"], "engine.kv_cache_gib=1e-5", "template=chat")
    missing = [EvalModel(path="./none", name="gone"), EvalModel(path=str(model), name="fine")]
    rows = [EvalData(path="./no.jsonl", name="lost"), EvalData(path=config.data[0].path, output="answers")]
    with pytest.raises(ConfigError) as found:
        check_eval(config.model_copy(update={"models": tuple(missing), "data": tuple(rows)}))
    assert [fault.key for fault in found.value.faults] == [
        "data[lost].path", "models[gone].path", "engine.kv_cache_gib", "data[asked].output"
    ]  # fmt: skip


def test_what_is_left_out_is_told_by_the_evaluation_s_settings(tmp_path, model):
    rows = [{"instruction": "x" * n, "output": "y" * n} for n in (5, 20, 90)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (candidate,) = check_eval(settings(tmp_path, model, ["fine"], "max_reference_tokens=8"))
    (task,) = candidate.tasks
    assert [(drop.prompt_id, drop.reason, drop.detail) for drop in task.dropped] == [
        ("asked/2", "prompt_too_long", "96 tokens > max_prompt_tokens = 64"),
        ("asked/1", "reference_too_long", "22 tokens > max_reference_tokens = 8"),
    ]
    assert [passage.prompt_id for passage in task.given] == ["asked/0"]
