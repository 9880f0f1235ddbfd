"""One set-up of logging for every process of a run: one JSON object per line, one file per process.

    driver      target = start_run_logs(run_dir, "info")    makes RUN/logs and its marker file
                setup_logging(target, "driver")
    a worker    setup_logging(target, "rollout-0")          the target travels with the worker's settings

    {"at": "2026-03-01T12:00:00.000+00:00", "level": "INFO", "actor": "rollout-0", "pid": 71, "run": "opd",
     "logger": "minillm_ray.actors.workers", "event": "drew", "set": 3, "version": 3, "ids": ["train/17#0"]}

A process that finds the marker sees the driver's run directory, not a folder of the same name on a disk of
its own, and writes RUN/logs/<actor>.jsonl. Any other writes the same lines to stderr, which Ray keeps in its
session files.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

OURS = "minillm_ray"
"""The logger above all of ours."""
LogLevel = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
QUIET = ("vllm", "deepspeed", "DeepSpeed", "transformers", "datasets")
"""Loggers of libraries that tell more than a run's log should hold; their warnings stay."""
EXTRA = ("set", "step", "version", "ids")
"""What a plain `logger.info(..., extra={...})` may add; `EventLog` takes any field."""
SECRET_NAMES = re.compile("TOKEN|SECRET|PASSWORD|API_KEY", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Shorter values of such variables are words like `false` (TOKENIZERS_PARALLELISM), not secrets."""
_MARKER = ".driver-"
ENVIRONMENT = "MINILLM_LOG_TARGET"
"""Variable of a worker's environment that holds its target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTarget:
    """Where the processes of one run log; the driver makes it, every worker is given it."""

    run: str
    """The run's name, in every line."""
    folder: str
    """RUN/logs, as an absolute path on the driver's machine."""
    token: str
    """In the name of the marker file, so that no folder of another run or machine is taken for this one."""
    level: LogLevel = "info"

    @classmethod
    def of_process(cls) -> LogTarget | None:
        """What the driver has put into this process's environment; None where nothing was said."""
        told = os.environ.get(ENVIRONMENT)
        return None if told is None else cls(**json.loads(told))

    def environment(self) -> dict[str, str]:
        """The variable by which `of_process` finds it in a worker."""
        return {ENVIRONMENT: json.dumps(asdict(self))}

    @property
    def marker(self) -> Path:
        """The file by which a worker knows that it sees the driver's folder."""
        return Path(self.folder) / f"{_MARKER}{self.token}"


def start_run_logs(run_dir: Path, level: LogLevel = "info", run: str | None = None) -> LogTarget:
    """Make RUN/logs with a fresh marker file; the run is called as its folder, unless `run` is given."""
    folder = run_dir.expanduser().resolve() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{_MARKER}*"):  # of a driver that ended: its workers are gone
        old.unlink(missing_ok=True)
    target = LogTarget(
        run=run or folder.parent.name, folder=str(folder), token=secrets.token_hex(8), level=level
    )
    target.marker.touch()
    return target


def sees_run_dir(target: LogTarget) -> bool:
    """Whether this process sees the driver's run directory.

    The folder is listed, not the file asked for: a network file system may remember for a while that a file
    was missing, but looks anew when a folder is opened.
    """
    try:
        return target.marker.name in os.listdir(target.folder)
    except OSError:
        return False


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line, without the secrets of this process's environment."""

    def __init__(self, run: str, actor: str):
        super().__init__()
        self._run, self._actor = run, actor
        self._secrets = _secrets_of(os.environ)

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "actor": self._actor,
            "pid": os.getpid(),
            "run": self._run,
            "logger": record.name,
        }
        fields: Mapping[str, Any] | None = getattr(record, "fields", None)
        line["message" if fields is None else "event"] = self._clean(record.getMessage())
        extra = {name: getattr(record, name) for name in EXTRA if hasattr(record, name)}
        for name, value in (_context | extra | dict(fields or {})).items():
            line[name if name not in line else f"{name}_"] = self._clean(value)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = self._clean(f"{type(error).__name__}: {error}")
            line["traceback"] = self._clean("".join(traceback.format_exception(error)))
        return json.dumps(line, ensure_ascii=False)

    def _clean(self, value: Any) -> Any:
        """The value in JSON's own kinds: arrays as lists, what has no such kind as text; no secrets."""
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, Mapping):
            return {self._clean(str(key)): self._clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(item) for item in value]
        if hasattr(value, "tolist"):  # numpy and torch, which this module does not import
            return self._clean(value.tolist())
        return _redacted(str(value), self._secrets)


class _TellsOnce(logging.Handler):
    """Says once, on stderr, that a line was lost: a full disk loses every line.

    The standard library would repeat it for each, with the line's text, secrets and all.
    """

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if self._told or not logging.raiseExceptions:
            return
        self._told = True
        error = sys.exc_info()[1]
        with suppress(OSError, ValueError, AttributeError):  # stderr may be closed, or be None
            sys.stderr.write(f"a log line of {record.name} was lost: {type(error).__name__}: {error}\n")


class _StderrHandler(_TellsOnce, logging.StreamHandler):
    """Where Ray keeps what a worker says."""


class JsonLinesHandler(_TellsOnce):
    """Appends one line per record to a file, in one write, so that nothing waits in a buffer.

    The file is opened when it is needed: importing vLLM closes all handlers of a process (dictConfig).
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._fd: int | None = None
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; what keeps it from being written is told once, on stderr."""
        try:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
            if self._torn:  # a full disk took half of the line before
                line = b"\n" + line
            self._torn = os.write(self._fd, line) < len(line)
        except Exception:  # as every handler of the standard library: a log line may not end a run
            self.handleError(record)

    def close(self) -> None:
        """Let go of the file; a later record opens it again."""
        self.acquire()
        try:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        finally:
            self.release()
        super().close()


class PersonHandler(_TellsOnce):
    """Hands the text of our warnings and errors to whoever shows them to a person."""

    def __init__(self, callback: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self._callback = callback
        self._secrets = _secrets_of(os.environ)

    def emit(self, record: logging.LogRecord) -> None:
        """Call back with `warning: text`."""
        try:
            fields: Mapping[str, Any] = getattr(record, "fields", None) or {}
            told = ", ".join(f"{name} = {value}" for name, value in fields.items())
            text = f"{record.levelname.lower()}: {record.getMessage()}{f' ({told})' if told else ''}"
            self._callback(_redacted(text, self._secrets))
        except Exception:  # as in JsonLinesHandler
            self.handleError(record)


class _ToApplication(logging.Handler):
    """Passes our warnings on to the root logger of the application that imported us, if it shows any."""

    def emit(self, record: logging.LogRecord) -> None:
        root = logging.getLogger()
        if root.handlers:
            root.handle(record)


class EventLog:
    """A module's own log: `log = EventLog(__name__)`, then `log.event("drew", set=3, ids=[...])`."""

    def __init__(self, name: str):
        self.logger = logging.getLogger(name)

    def event(self, name: str, /, *, level: int = logging.INFO, **fields: Any) -> None:
        """Something that happened, by a short name to search for, and its facts."""
        if self.logger.isEnabledFor(level):
            self.logger.log(level, "%s", name, extra={"fields": fields}, stacklevel=2)

    def debug(self, name: str, /, **fields: Any) -> None:
        """An event that is written at --log-level debug only."""
        self.event(name, level=logging.DEBUG, **fields)

    def warning(self, text: str, /, *args: object) -> None:
        """A sentence that a person must see; it reaches the progress display too."""
        self.logger.warning(text, *args, stacklevel=2)

    def failure(self, name: str, error: BaseException, /, **fields: Any) -> None:
        """Something that went wrong, with its traceback in one line."""
        self.logger.error("%s", name, exc_info=error, extra={"fields": fields}, stacklevel=2)


def setup_logging(target: LogTarget | None, actor: str, *, owns_process: bool = True) -> bool:
    """Log as `actor` from now on; returns whether that goes into the run directory.

    `owns_process`: the process is ours alone (a worker, the command line), so that warnings of libraries go
    to the same place. Otherwise only our own loggers are touched. Without a target nothing is done. Asking
    for the same again changes nothing; asking for something else replaces what was there.
    """
    global _current
    if target is None:
        return False
    if _current is not None and _current.asked == (target, actor, owns_process):
        return _current.in_run_dir
    reset_logging()
    in_run_dir = sees_run_dir(target)
    _current = _SetUp((target, actor, owns_process), in_run_dir)
    name = re.sub(r"[^\w.-]", "_", actor)
    lines: logging.Handler = (
        JsonLinesHandler(Path(target.folder) / f"{name}.jsonl") if in_run_dir else _StderrHandler(sys.stderr)
    )
    lines.setFormatter(JsonFormatter(target.run, actor))
    lines.addFilter(lambda record: _is_ours(record.name) or record.levelno >= logging.WARNING)
    lines.setLevel(target.level.upper())
    logger = logging.getLogger(OURS)
    # The level is that of the lines: a person sees warnings whatever it is.
    logger.setLevel(min(lines.level, logging.WARNING))
    # Or what the application's root logger prints would hold every event of ours.
    logger.propagate = False
    _install(logger, lines)
    if owns_process:
        _install(logging.getLogger(), lines)
        quiet_libraries()
    else:
        _install(logger, _ToApplication(logging.WARNING))
    return in_run_dir


def reset_logging() -> None:
    """Take back what `setup_logging` did, and forget what was bound."""
    global _context, _current
    for logger, handler in _installed:
        logger.removeHandler(handler)
        handler.close()
    _installed.clear()
    _context, _current = {}, None
    logger = logging.getLogger(OURS)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@dataclass(slots=True)
class _Defaults:
    """What `driver_logs` takes where nothing else was said."""

    level: LogLevel = "info"
    owns_process: bool = False


_defaults = _Defaults()


def set_defaults(*, level: LogLevel, owns_process: bool) -> None:
    """How the runs of this process log from now on; the command line says it once, at its start."""
    _defaults.level, _defaults.owns_process = level, owns_process


@contextmanager
def driver_logs(output_dir: Path) -> Iterator[LogTarget]:
    """The driver, and workers that it starts, log into `output_dir`/logs for the length of the block."""
    target = start_run_logs(output_dir, _defaults.level)
    setup_logging(target, "driver", owns_process=_defaults.owns_process)
    os.environ.update(target.environment())
    try:
        yield target
    except BaseException as error:
        EventLog(__name__).failure("run failed", error)
        raise
    finally:
        os.environ.pop(ENVIRONMENT, None)
        reset_logging()


def quiet_libraries() -> None:
    """Only warnings of the libraries in QUIET; once more after an import, where the library sets its own."""
    for name in QUIET:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))


def bind(**fields: Any) -> None:
    """Fields of every line of this process from now on, such as `step=12`; None takes one away."""
    global _context
    # A new mapping, so that a thread that formats a line sees the old one or the new one.
    _context = {name: value for name, value in (_context | fields).items() if value is not None}


@contextmanager
def person_sees(callback: Callable[[str], None]) -> Iterator[None]:
    """Our warnings and errors are also given to `callback` for the length of the block, as text."""
    logger, handler = logging.getLogger(OURS), PersonHandler(callback)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@dataclass(frozen=True, slots=True)
class _SetUp:
    """What this process was last set up for."""

    asked: tuple[LogTarget, str, bool]
    in_run_dir: bool


_current: _SetUp | None = None
_installed: list[tuple[logging.Logger, logging.Handler]] = []
_context: dict[str, Any] = {}


def _is_ours(name: str) -> bool:
    return name == OURS or name.startswith(f"{OURS}.")


def _install(logger: logging.Logger, handler: logging.Handler) -> None:
    logger.addHandler(handler)
    _installed.append((logger, handler))


def _secrets_of(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """(value, what to write for it) of every variable that holds a secret by its name, longest first."""
    found = {
        value: f"[{name}]"
        for name, value in environment.items()
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST_SECRET
    }
    return sorted(found.items(), key=lambda pair: -len(pair[0]))


def _redacted(text: str, known: Iterable[tuple[str, str]]) -> str:
    for value, shown in known:
        text = text.replace(value, shown)
    return text
