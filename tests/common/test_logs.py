"""Every process of a run writes lines that a program can read, into the one place where they belong."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minillm_ray.common import logs
from minillm_ray.common.logs import EventLog, LogTarget
from minillm_ray.common.types import answer_names

log = EventLog("minillm_ray.tests.logs")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """No handler or level of these tests outlives them."""
    names = [None, logs.OURS, *logs.QUIET]
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    logs.reset_logging()
    for name in names:
        logging.getLogger(name).setLevel(levels[name])
        left = [handler.formatter for handler in logging.getLogger(name).handlers]
        assert not any(isinstance(formatter, logs.JsonFormatter) for formatter in left)


@pytest.fixture
def target(tmp_path: Path) -> LogTarget:
    return logs.start_run_logs(tmp_path / "opd")


def lines_of(target: LogTarget, actor: str) -> list[dict[str, Any]]:
    text = (Path(target.folder) / f"{actor}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def unseen(target: LogTarget) -> LogTarget:
    """The same folder, by the token of another driver."""
    return LogTarget(run=target.run, folder=target.folder, token="another", level=target.level)


def run_python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | variables
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip


def test_a_line_says_when_who_where_and_what(target: LogTarget):
    before = datetime.now(UTC)
    assert logs.setup_logging(target, "rollout-0")
    log.event("drew", set=3, step=12, version=4, ids=["dolly/17#0", "dolly/18#0"])
    (line,) = lines_of(target, "rollout-0")
    at = datetime.fromisoformat(line.pop("at"))
    assert at.utcoffset() == datetime.now(UTC).utcoffset()
    assert -0.01 < (at - before).total_seconds() < 60
    assert line == {
        "level": "INFO", "actor": "rollout-0", "pid": os.getpid(), "run": "opd",
        "logger": "minillm_ray.tests.logs", "event": "drew", "set": 3, "step": 12, "version": 4,
        "ids": ["dolly/17#0", "dolly/18#0"],
    }  # fmt: skip


def test_a_plain_message_can_carry_the_fields_of_a_run(target: LogTarget):
    logs.setup_logging(target, "driver")
    log.logger.info("%d answers", 3, extra={"set": 1, "ids": ["a#0"], "colour": "red"})
    (line,) = lines_of(target, "driver")
    assert line["message"] == "3 answers"
    assert (line["set"], line["ids"]) == (1, ["a#0"])
    assert "colour" not in line
    assert "event" not in line


def test_bound_fields_are_in_every_line_until_they_are_taken_away(target: LogTarget):
    logs.setup_logging(target, "learner-0")
    logs.bind(step=7, set=2)
    log.event("one")
    log.event("two", step=8)
    logs.bind(step=None)
    log.event("three")
    one, two, three = lines_of(target, "learner-0")
    assert (one["step"], two["step"], three.get("step")) == (7, 8, None)
    assert {line["set"] for line in (one, two, three)} == {2}


def test_a_field_never_hides_who_wrote_the_line(target: LogTarget):
    logs.setup_logging(target, "driver")
    log.event("ready", actor="rollout-0", pid=1, name="x", module="y", at=3)
    (line,) = lines_of(target, "driver")
    assert (line["actor"], line["actor_"]) == ("driver", "rollout-0")
    assert (line["pid"], line["pid_"]) == (os.getpid(), 1)
    assert (line["name"], line["module"], line["at_"]) == ("x", "y", 3)


def test_numbers_that_json_lacks_and_arrays_are_still_one_json_line(target: LogTarget):
    logs.setup_logging(target, "driver")
    log.event(
        "values", nan=float("nan"), some={"a": np.float32(0.5), 3: np.arange(2)}, where=Path("x"), s={1},
        several="one\ntwo",
    )  # fmt: skip
    (line,) = lines_of(target, "driver")
    assert (line["nan"], line["some"], line["where"]) == ("nan", {"a": 0.5, "3": [0, 1]}, "x")
    assert (line["s"], line["several"]) == ([1], "one\ntwo")


def test_an_exception_is_one_line_with_its_traceback_in_a_field(target: LogTarget):
    logs.setup_logging(target, "teacher-0")
    try:
        raise ValueError("no such\nmodel")
    except ValueError as error:
        log.failure("could not start", error, step=2)
        log.logger.exception("again")
    first, second = lines_of(target, "teacher-0")
    for line in (first, second):
        assert line["level"] == "ERROR"
        assert line["error"] == "ValueError: no such\nmodel"
        assert line["traceback"].startswith("Traceback (most recent call last):\n")
        assert "raise ValueError" in line["traceback"]
    assert (first["event"], first["step"], second["message"]) == ("could not start", 2, "again")


WORKER = """
import json, pickle, sys
from minillm_ray.common import logs
target, actor, count = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2], int(sys.argv[3])
print(logs.setup_logging(target, actor))
for n in range(count):
    logs.EventLog("minillm_ray.worker").event("drew", n=n, ids=["x" * 300] * 40)
"""


def test_processes_that_see_the_run_directory_write_a_file_each(target: LogTarget):
    sent = pickle.dumps(target).hex()
    for actor in ("rollout-0", "rollout-1"):
        assert run_python(WORKER, sent, actor, "3").stdout == "True\n"
    assert sorted(path.name for path in Path(target.folder).glob("*.jsonl")) == [
        "rollout-0.jsonl",
        "rollout-1.jsonl",
    ]
    pids = [{line["pid"] for line in lines_of(target, actor)} for actor in ("rollout-0", "rollout-1")]
    assert [len(found) for found in pids] == [1, 1]
    assert pids[0] != pids[1]


def test_long_lines_of_several_processes_in_one_file_stay_whole(target: LogTarget):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", WORKER, pickle.dumps(target).hex(), "rollout-0", "200"]
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    lines = lines_of(target, "rollout-0")
    assert len(lines) == 400
    assert len({line["pid"] for line in lines}) == 2


def test_a_process_without_the_drivers_marker_writes_to_stderr(target: LogTarget):
    ended = run_python(WORKER, pickle.dumps(unseen(target)).hex(), "rollout-0", "1")
    assert ended.stdout == "False\n"
    line = json.loads(ended.stderr)
    assert (line["actor"], line["event"]) == ("rollout-0", "drew")
    assert list(Path(target.folder).glob("*.jsonl")) == []


def test_a_folder_that_is_not_there_is_not_seen(tmp_path: Path, target: LogTarget):
    elsewhere = LogTarget(run="x", folder=str(tmp_path / "missing"), token=target.token)
    assert logs.sees_run_dir(target)
    assert not logs.sees_run_dir(elsewhere)


def test_a_new_driver_leaves_one_marker_and_the_old_lines(tmp_path: Path, target: LogTarget):
    logs.setup_logging(target, "driver")
    log.event("first run")
    again = logs.start_run_logs(tmp_path / "opd")
    assert (logs.sees_run_dir(target), logs.sees_run_dir(again)) == (False, True)
    logs.setup_logging(again, "driver")
    log.event("resumed")
    assert [line["event"] for line in lines_of(again, "driver")] == ["first run", "resumed"]


def test_setting_up_twice_writes_each_line_once_and_keeps_what_is_bound(target: LogTarget):
    assert logs.setup_logging(target, "driver")
    logs.bind(step=5)
    assert logs.setup_logging(target, "driver")
    log.event("once")
    assert [(line["event"], line["step"]) for line in lines_of(target, "driver")] == [("once", 5)]


def test_setting_up_as_another_moves_all_lines_there(target: LogTarget):
    logs.setup_logging(target, "driver")
    logs.setup_logging(target, "teacher-0")
    log.event("here")
    assert [line["event"] for line in lines_of(target, "teacher-0")] == ["here"]
    assert not (Path(target.folder) / "driver.jsonl").exists()


def test_without_a_target_nothing_is_touched():
    logger = logging.getLogger(logs.OURS)
    before = (logger.level, logger.propagate, list(logger.handlers))
    assert not logs.setup_logging(None, "driver")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


@pytest.mark.parametrize(
    ("level", "written"),
    [("debug", ["d", "i", "w"]), ("info", ["i", "w"]), ("warning", ["w"]), ("error", [])],
)
def test_the_level_decides_what_is_written(tmp_path: Path, level: logs.LogLevel, written: list[str]):
    target = logs.start_run_logs(tmp_path, level)
    logs.setup_logging(target, "driver")
    log.debug("d")
    log.event("i")
    log.event("w", level=logging.WARNING)
    file = Path(target.folder) / "driver.jsonl"
    assert [line["event"] for line in (lines_of(target, "driver") if file.exists() else [])] == written


@pytest.mark.parametrize("level", logs.LEVELS)
def test_a_person_sees_warnings_whatever_is_written(tmp_path: Path, level: logs.LogLevel):
    logs.setup_logging(logs.start_run_logs(tmp_path, level), "driver")
    seen: list[str] = []
    with logs.person_sees(seen.append):
        log.event("drew")
        log.warning("the reverse KL rises")
    assert seen == ["warning: the reverse KL rises"]


def test_a_process_of_our_own_keeps_the_warnings_of_libraries_and_not_their_news(target: LogTarget):
    logs.setup_logging(target, "rollout-0")
    library = logging.getLogger("a_library.some.module")
    library.info("loading weights")
    library.warning("no pad token")
    assert [line["message"] for line in lines_of(target, "rollout-0")] == ["no pad token"]


def test_in_the_process_of_an_application_only_our_loggers_are_touched(
    target: LogTarget, monkeypatch: pytest.MonkeyPatch
):
    root = logging.getLogger()
    shown: list[str] = []

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    monkeypatch.setattr(root, "handlers", [Shown()])
    level = logging.getLogger("transformers").level
    logs.setup_logging(target, "driver", owns_process=False)
    assert [type(handler) for handler in root.handlers] == [Shown]
    assert logging.getLogger("transformers").level == level
    log.event("not for the application")
    log.warning("for %s", "both")
    logging.getLogger("a_library").warning("theirs")
    assert shown == ["for both", "theirs"]
    assert [line.get("event") or line["message"] for line in lines_of(target, "driver")] == [
        "not for the application",
        "for both",
    ]


def test_quiet_libraries_are_never_made_louder():
    logging.getLogger("vllm").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").setLevel(logging.INFO)
    logs.quiet_libraries()
    assert logging.getLogger("vllm").level == logging.ERROR
    assert logging.getLogger("DeepSpeed").level == logging.WARNING


def test_lines_go_on_after_a_library_has_closed_all_handlers(target: LogTarget):
    """As importing vLLM does."""
    logs.setup_logging(target, "rollout-0")
    log.event("before")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    log.event("after")
    assert [line["event"] for line in lines_of(target, "rollout-0")] == ["before", "after"]


def test_a_full_disk_ends_no_run_and_is_told_once(
    target: LogTarget, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    logs.setup_logging(target, "driver")
    log.event("before")
    write, room = os.write, [40]

    def nearly_full(fd: int, data: bytes) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return write(fd, data[: room.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full)
        for number in range(3):
            log.event("lost", number=number)
    log.event("after")
    told = capsys.readouterr().err
    assert (
        told == "a log line of minillm_ray.tests.logs was lost: OSError: [Errno 28] No space left on device\n"
    )
    text = (Path(target.folder) / "driver.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in (text[0], text[2])] == ["before", "after"]
    assert len(text) == 3


def test_a_folder_that_vanished_ends_no_run(target: LogTarget, capsys: pytest.CaptureFixture[str]):
    logs.setup_logging(target, "driver")
    target.marker.unlink()
    Path(target.folder).rmdir()
    log.event("lost")
    assert "was lost: FileNotFoundError: " in capsys.readouterr().err


def test_a_message_that_does_not_fit_its_arguments_ends_no_run(
    target: LogTarget, capsys: pytest.CaptureFixture[str]
):
    logs.setup_logging(target, "driver")
    log.logger.info("%d answers", "many")
    log.event("after")
    assert capsys.readouterr().err.startswith("a log line of minillm_ray.tests.logs was lost: TypeError: ")
    assert [line["event"] for line in lines_of(target, "driver")] == ["after"]


def test_a_warning_of_ours_reaches_a_person_and_nothing_else_does(target: LogTarget):
    logs.setup_logging(target, "driver")
    seen: list[str] = []
    with logs.person_sees(seen.append):
        log.event("not worth a line")
        log.warning("answers grow shorter: %d tokens", 3)
        log.event("slow disk", level=logging.WARNING, seconds=9)
        log.failure("save failed", OSError("full"))
        logging.getLogger("a_library").warning("theirs")
    log.warning("too late")
    assert seen == [
        "warning: answers grow shorter: 3 tokens",
        "warning: slow disk (seconds = 9)",
        "error: save failed",
    ]


SECRET_RUN = """
import logging, pickle, sys
from minillm_ray.common import logs
target = pickle.loads(bytes.fromhex(sys.argv[1]))
logs.setup_logging(target, "driver")
log = logs.EventLog("minillm_ray.x")
secret = 'hf_quo"te\\\\d87'
log.logger.info("downloading with %s", secret)
log.event("fetch", url=f"https://user:{secret}@hub", many=[{secret: "sk-12345678"}], count=12345678)
log.event("steps", parallelism="false", flag="on")
try:
    raise ValueError(secret)
except ValueError as error:
    log.failure("refused", error)
with logs.person_sees(print):
    log.warning("see %s", secret)
"""


def test_no_secret_of_the_environment_is_written_or_shown(target: LogTarget):
    ended = run_python(
        SECRET_RUN, pickle.dumps(target).hex(),
        HF_TOKEN='hf_quo"te\\d87', my_api_key="sk-12345678", TOKENIZERS_PARALLELISM="false", A_PASSWORD="on",
        PIN_SECRET="12345678",
    )  # fmt: skip
    text = (Path(target.folder) / "driver.jsonl").read_text(encoding="utf-8")
    message, fetch, steps, refused, shown = lines_of(target, "driver")
    assert "d87" not in text + ended.stdout + ended.stderr
    assert message["message"] == "downloading with [HF_TOKEN]"
    assert fetch["url"] == "https://user:[HF_TOKEN]@hub"
    assert fetch["many"] == [{"[HF_TOKEN]": "[my_api_key]"}]
    assert fetch["count"] == 12345678, "a number stays a number"
    assert (steps["parallelism"], steps["flag"]) == ("false", "on"), "short words are no secrets"
    assert refused["error"] == "ValueError: [HF_TOKEN]"
    assert shown["message"] == "see [HF_TOKEN]"
    assert ended.stdout == "warning: see [HF_TOKEN]\n"


def test_an_answer_has_one_name_in_all_logs():
    assert answer_names(("dolly/17", "dolly/17", "x"), (0, 1, 0)) == ["dolly/17#0", "dolly/17#1", "x#0"]


def test_an_actors_name_stays_within_the_folder(target: LogTarget):
    logs.setup_logging(target, "../../eval mt/0")
    log.event("here")
    assert [path.name for path in Path(target.folder).glob("*.jsonl")] == [".._.._eval_mt_0.jsonl"]


def test_logging_brings_no_heavy_library():
    code = (
        "import sys, minillm_ray.common.logs; print(sorted({'torch', 'ray', 'numpy', 'pydantic', 'vllm'}"
        " & set(sys.modules)))"
    )
    assert run_python(code).stdout == "[]\n"
