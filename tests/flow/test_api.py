"""From Python: rows handed over, a callback that stops the run, and `resume` with nothing but its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import minillm_ray as mr
import numpy as np
import pytest
from minillm_ray.deploy.training.metrics_log import read_metrics

pytestmark = pytest.mark.ray

ROWS = [{"instruction": f"say {word}", "output": word} for word in ("red", "blue", "sun", "moon") * 4]


class Watcher(mr.Callback):
    """Notes each moment, and says STOP behind a step."""

    def __init__(self, stop_at: int | None = None):
        self.stop_at, self.heard = stop_at, []

    def on_start(self, state: mr.TrainState) -> None:
        self.heard.append(("start", state.step))

    def on_step(self, state: mr.TrainState) -> object:
        self.heard.append(("step", state.step))
        assert state.metrics["learner/loss"] > 0
        return mr.STOP if state.step == self.stop_at else None

    def on_evaluate(self, state: mr.TrainState) -> object:
        self.heard.append(("evaluate", state.step))
        assert any(state.metrics.get(name, 0) > 0 for name in ("validation/loss", "validation/reverse_kl"))
        return mr.STOP if state.step == self.stop_at else None

    def on_save(self, state: mr.TrainState) -> None:
        self.heard.append(("save", state.step))

    def on_end(self, state: mr.TrainState) -> None:
        self.heard.append(("end", state.step))
        assert (state.output_dir / "last" / "model.safetensors").exists()


def settings(student: Path, output_dir: Path) -> dict[str, Any]:
    return {
        "student": {"path": str(student)},
        "data": {"max_prompt_tokens": 64, "validation": {"output": "output"}},
        "rollout": {"rollout_batch_size": 8, "max_new_tokens": 8},
        "learner": {"max_steps": 4, "batch_size": 8, "micro_batch_size": 8, "optimizer": {"lr": 0.01}},
        "eval_steps": 2,
        "cluster": {"learner_cpus": 0.1, "writer_cpus": 0.1},
        "output_dir": str(output_dir),
    }


def losses(folder: Path) -> list[float]:
    return [row["learner/loss"] for row in read_metrics(folder) if "learner/loss" in row]


@pytest.mark.slow
def test_a_run_that_a_callback_stopped_goes_on_from_its_folder_alone_as_if_it_had_never_stopped(
    ray_cluster, tiny_pair, tmp_path, capfd
):
    data = {"train": ROWS, "validation": ROWS[:4]}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    quiet = mr.sft(settings(tiny_pair[1], whole), data=data, progress=False)
    assert capfd.readouterr().out == ""
    assert (quiet.steps, quiet.stopped_by) == (4, None)

    watcher = Watcher(stop_at=2)
    result = mr.sft(settings(tiny_pair[1], stopped), data=data, callbacks=[watcher])
    said = " ".join(capfd.readouterr().out.split())
    assert "stopped after step 2, as Watcher asked; the checkpoint is complete" in said
    assert (result.steps, result.stopped_by) == (2, "Watcher")
    assert watcher.heard == [
        ("start", 0), ("evaluate", 0), ("step", 1), ("step", 2), ("evaluate", 2), ("save", 2), ("end", 2),
    ]  # fmt: skip
    assert (stopped / "last" / "model.safetensors").exists()

    later = Watcher(stop_at=4)
    done: Any = mr.resume(stopped, callbacks=[later], progress=False)
    assert (done.steps, done.stopped_by) == (4, None), "it came to its end, whatever was asked there"
    assert later.heard[:2] == [("start", 2), ("step", 3)]
    np.testing.assert_array_equal(losses(stopped), losses(whole))


@pytest.mark.slow
@pytest.mark.vllm
def test_a_run_that_was_stopped_before_its_first_set_goes_on(ray_cluster, tiny_pair, tmp_path):
    run = settings(tiny_pair[1], tmp_path) | {"teacher": {"path": str(tiny_pair[0])}}
    run["rollout"] = {**run["rollout"], "num_generations": 1, "kv_cache_gib": 0.05}
    run["learner"] = {**run["learner"], "max_steps": 2, "num_iterations": 2}
    run["cluster"] = {f"{role}_cpus": 0.1 for role in ("rollout", "teacher", "learner", "writer")}
    stopped = mr.train(
        run, data={"train": ROWS, "validation": ROWS[:4]}, callbacks=[Watcher(0)], progress=False
    )
    assert (stopped.steps, stopped.stopped_by) == (0, "Watcher")
    done: Any = mr.resume(tmp_path, progress=False)
    assert (done.steps, done.stopped_by) == (2, None)


def test_rows_are_refused_before_anything_is_written_where_the_folder_holds_a_run(tiny_pair, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds a run already"):
        mr.sft(settings(tiny_pair[1], tmp_path), data={"train": ROWS, "validation": ROWS}, progress=False)
    assert not (tmp_path / "data").exists()
