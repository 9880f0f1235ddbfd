import json

import pytest
from minillm_ray.common.errors import ConfigError, DataError
from minillm_ray.deploy.training.metrics_log import FILE, MetricsLog, drop_after, read_metrics
from minillm_ray.deploy.training.run_dir import RunDir, RunState


def checkpoint(folder: RunDir, step: int, keep: int = 2) -> None:
    folder.checkpoint(step).mkdir(parents=True)
    folder.complete_checkpoint(
        RunState(step=step, version=step // 4, cursors={"prompts": {"taken": step}}), keep
    )


def test_a_state_comes_back_as_it_was_kept(tmp_path):
    folder = RunDir(tmp_path)
    checkpoint(folder, 16)
    assert folder.newest_state() == RunState(step=16, version=4, cursors={"prompts": {"taken": 16}})


def test_the_best_student_comes_back_as_it_was_at_the_checkpoint(tmp_path):
    folder = RunDir(tmp_path)
    folder.best.mkdir()
    (folder.best / "model.safetensors").write_text("of step 8")
    checkpoint(folder, 8)
    (folder.best / "model.safetensors").write_text("of step 12, which the resumed run has not made")
    folder.restore_best(8)
    assert (folder.best / "model.safetensors").read_text() == "of step 8"


def test_a_checkpoint_that_was_not_completed_is_not_resumed_from(tmp_path):
    folder = RunDir(tmp_path)
    checkpoint(folder, 16)
    folder.checkpoint(32).mkdir(parents=True)
    state = folder.newest_state()
    assert state is not None
    assert state.step == 16


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    folder = RunDir(tmp_path)
    for step in (16, 32, 48):
        checkpoint(folder, step)
    assert [p.name for p in folder.checkpoints()] == ["step-000032", "step-000048"]


def test_checkpoints_are_in_the_order_of_their_steps_however_many_digits_these_have(tmp_path):
    folder = RunDir(tmp_path)
    for step in (999_500, 1_000_000, 1_000_500):
        checkpoint(folder, step)
    assert folder.checkpoint_steps() == [1_000_000, 1_000_500]
    assert folder.checkpoints()[-1] == folder.checkpoint(1_000_500)
    state = folder.newest_state()
    assert state is not None
    assert state.step == 1_000_500


def test_a_checkpoint_that_was_set_aside_for_another_is_none(tmp_path):
    folder = RunDir(tmp_path)
    checkpoint(folder, 16)
    folder.checkpoint(16).rename(folder.checkpoint(16).with_name("step-000016.old"))
    assert folder.newest_state() is None
    assert folder.checkpoint_steps() == []


def test_a_new_run_does_not_write_into_an_old_ones_folder(tmp_path):
    folder = RunDir(tmp_path)
    folder.refuse_to_overwrite()
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="minillm resume"):
        folder.refuse_to_overwrite()


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    lines = [{"step": 8, "learner/loss": 1.0}, {"event": "dropped"}, {"step": 9, "learner/loss": 0.9}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drop_after(tmp_path, 8)
    assert [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == lines[:2]


def test_lines_of_a_set_that_was_interrupted_go_though_they_are_of_the_checkpoints_step(tmp_path):
    log = MetricsLog(tmp_path)
    log.record(0, {"validation/loss": 3.0})
    for number, step in ((0, 0), (1, 8)):
        log.begin_set(number)
        log.event("dropped", prompt_id=f"train/{number}")
        log.record(step, {"rollout/set_s": 1.0 + number})
        if number == 0:
            log.record(8, {"learner/loss": 1.0})
            log.record(8, {"run/iteration_s": 9.0})  # behind the checkpoint, which is of step 8 and one set
    log.close()
    whole = (tmp_path / FILE).read_text().splitlines()
    drop_after(tmp_path, 8, 1)
    assert (tmp_path / FILE).read_text().splitlines() == whole[:-2]
    assert [json.loads(line).get("set") for line in whole] == [None, 0, 0, 0, 0, 1, 1]
    drop_after(tmp_path, -1, 0)
    assert (tmp_path / FILE).read_text() == ""


def test_a_line_that_was_cut_off_is_no_line(tmp_path):
    whole = json.dumps({"step": 8, "learner/loss": 1.0}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 9, "learner/lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [8]
    drop_after(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == whole


@pytest.mark.parametrize("line", ['{"step": 9, "lear', "[1, 2]", '{"learner/loss": 1.0}', "\ufffd"])
def test_a_damaged_line_is_named_with_a_way_out(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 8}\n' + line + '\n{"step": 10}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2, .* delete that line"):
        read_metrics(tmp_path)
