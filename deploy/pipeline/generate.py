"""A model's answers to the questions of data.train, drawn by vLLM and kept as a data set to learn from.

A generation is described by an ordinary run file; `as_generation` makes one in which the model that answers
is the student. Answers go from the engines to the writer of parts; only sizes come by here.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from rich.console import Console

from ...actors.answer_parts import ANSWERS, PARTS, Joined, answered, join
from ...actors.workers import PartsActor, RolloutActor
from ...common.config.run import RunConfig
from ...common.errors import ConfigError, DataError, MinillmError
from ...common.types import BatchSummary, Dropped, Prompt, SamplingSpec
from ..cli.progress import Progress, clock, summary_of
from ..config.loader import CONFIG_FILE, Values, load_run
from ..config.presets import Author, as_generation
from ..data.readers import Questions
from ..data.tokenize import Kept, load_prompts
from ..models.inspect import describe_model, load_tokenizer
from ..preflight.check import collect_error, merge_errors
from ..preflight.rules import cache_faults, max_tokens, model_faults, resource_faults
from ..runtime.cluster import cluster
from ..runtime.placement import Bundle, Reservation, bundles
from ..runtime.pool import Pool, result_of
from ..runtime.workers import wait_for

HEAD = "# Answers to data.train, by `minillm generate`"
"""How config.yaml of a generation begins, which is no run."""
MATTERS = (
    *("student", "data.train", "data.template", "data.system_prompt", "data.max_prompt_tokens", "seed"),
    *(
        f"rollout.{name}"
        for name in ("samples", "max_new_tokens", "temperature", "top_p", "top_k", "precision")
    ),
)
"""Settings that decide what is answered and how; half the answers cannot have others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What is asked for: answers by config.student, into config.output_dir."""

    config: RunConfig
    by: Author
    """What the run file that was given calls that model."""
    keep_cut: bool = False
    """Whether answers that were cut at rollout.max_new_tokens are good enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a generation leaves behind."""

    file: Path
    joined: Joined
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A generation that can start."""

    prompts: Kept[Prompt]
    vocabulary: int


def engines(config: RunConfig) -> list[Bundle]:
    """The rollout actors of a run, which are all that a generation needs."""
    return [index for index in bundles(config, os.cpu_count() or 1) if index.role == "rollout"]


def load_generation(
    path: Path | str,
    overrides: Sequence[str],
    *,
    output_dir: Path,
    by: Author = "teacher",
    keep_cut: bool = False,
) -> Generation:
    """Read a run file as one that has `by` answer data.train. Raises ConfigError as `load_run` does."""
    config = load_run(path, [*overrides, f"output_dir={output_dir}"], as_generation(by))
    return Generation(config=config, by=by, keep_cut=keep_cut)


def find_existing(folder: Path) -> Generation | None:
    """The generation whose answers are in `folder`; None if it holds something else."""
    file = folder / CONFIG_FILE
    if not file.exists() or not file.read_text(encoding="utf-8").startswith(HEAD):
        return None
    options: Values = {}

    def change(values: Values, faults: list[str]) -> Values:
        options.update({key: values.pop(key) for key in ("do", "by", "keep_cut")})
        return values

    config = load_run(file, [f"output_dir={json.dumps(str(folder))}"], change)
    return Generation(config=config, by=options["by"], keep_cut=options["keep_cut"])


def preflight(asked: Generation) -> Work:
    """All that can be found wrong without machines, as `check.check_run` does it for runs."""
    found: list[MinillmError] = []
    config, by = asked.config, asked.by
    faults = config.faults() + resource_faults(config, engines(config))
    facts = collect_error(found, describe_model, config.student, by)
    tokenizer = collect_error(found, load_tokenizer, config.student, by) if facts is not None else None
    if facts is not None:
        faults += model_faults(config, by, facts, in_engine=True) + cache_faults(config, facts, None)
    prompts = (
        collect_error(found, load_prompts, config, "train", tokenizer) if tokenizer is not None else None
    )
    if faults:
        found.insert(0, ConfigError(*faults))
    if found:
        raise merge_errors(found)
    assert facts is not None, "no fault, so there is a model"
    assert tokenizer is not None, "no fault, so there is a tokenizer"
    assert prompts is not None, "no fault, so there are prompts"
    return Work(prompts=prompts, vocabulary=min(facts.vocabulary, len(tokenizer)))


def generate(asked: Generation, console: Console | None = None) -> Generated:
    """Answer every question of data.train; goes on where an earlier call stopped.

    Raises ConfigError if answers were begun there with other settings, and DataError if every answer was cut.
    """
    began, config = time.monotonic(), asked.config
    folder = config.output_dir
    refuse_other_settings(config)
    work = preflight(asked)
    _mark(folder, work.prompts)
    _save(asked)
    with Progress(console or Console()) as progress:
        _tell(progress, work.prompts.dropped)
        done = answered(folder)
        left = list(pieces([n for n in range(len(work.prompts)) if n not in done], config.rollout.chunk))
        if done:
            progress.say(f"{len(done):,} of {len(work.prompts):,} questions are answered already")
        if left:
            _draw(config, work, left, len(done), progress)
        joined = join(folder, keep_cut=asked.keep_cut)
        if joined.cut and not asked.keep_cut:
            progress.say(_cut(joined, config))
        if joined.empty:
            progress.say(f"{joined.empty:,} answers ended before they said anything; training drops them")
    if not joined.written:
        raise DataError(f"{folder / ANSWERS} is empty: {_cut(joined, config)}")
    return Generated(file=folder / ANSWERS, joined=joined, seconds=time.monotonic() - began)


def pieces(numbers: Sequence[int], size: int) -> Iterator[range]:
    """Consecutive numbers in pieces of at most `size`; a gap ends a piece."""
    start = 0
    for end in range(1, len(numbers) + 1):
        whole = end - start == size
        if end == len(numbers) or whole or numbers[end] != numbers[end - 1] + 1:
            yield range(numbers[start], numbers[end - 1] + 1)
            start = end


def _save(asked: Generation) -> None:
    """Keep all settings in config.yaml; `do` tells that it is no run."""
    config = asked.config
    tree = {"do": "generate", "by": "student", "keep_cut": asked.keep_cut} | config.model_dump(mode="json")
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
    head = f"{HEAD}; here the {asked.by} that answers is called student.\n"
    (config.output_dir / CONFIG_FILE).write_text(head + text, encoding="utf-8")


def refuse_other_settings(config: RunConfig) -> None:
    """Answers of one folder are all drawn in one way; only the machines may change. Raises ConfigError."""
    file = config.output_dir / CONFIG_FILE
    if not file.exists():
        return
    find_existing = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(find_existing, dict) or find_existing.get("do") != "generate":
        raise ConfigError(
            f"{config.output_dir} holds something other than answers; choose another folder (--out)"
        )
    now = config.model_dump(mode="json")
    faults = []
    for key in MATTERS:
        before, after = _at(find_existing, key), _at(now, key)
        if before != after:
            faults.append(
                f"{key} = {after}, and the answers in {config.output_dir} were begun with {before}; set it back, or"
                " write into another folder (--out)"
            )
    if faults:
        raise ConfigError(*faults, source="this generation")


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _mark(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Remember which questions these are: parts are numbered by them. Raises DataError if they changed."""
    digest = 0
    for prompt in prompts:
        digest = zlib.crc32(prompt.token_ids.tobytes(), zlib.crc32(prompt.id.encode(), digest))
    mark = {"questions": len(prompts), "crc32": digest}
    file = folder / PARTS / "questions.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(mark) + "\n", encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != mark:
        raise DataError(
            f"the questions of data.train are not those that the answers in {folder} were begun with; write"
            " into another folder (--out), or bring the old data back"
        )


def _draw(config: RunConfig, work: Work, left: list[range], behind: int, progress: Progress) -> None:
    """Draw what is missing, on all engines, straight into parts."""
    progress.phase("starting engines")
    with cluster(config.cluster) as dashboard:
        if dashboard:
            progress.say(f"Ray dashboard: {dashboard}")
        reserved = Reservation(engines(config), config.cluster)
        try:
            _draw_with(config, work, left, behind, progress, reserved)
        finally:
            reserved.release()


def _draw_with(
    config: RunConfig, work: Work, left: list[range], behind: int, progress: Progress, reserved: Reservation
) -> None:
    rollout = config.rollout
    writer: Any = PartsActor.options(**reserved.writer_options()).remote(
        "writer", load_tokenizer(config.student, "model"), str(config.output_dir)
    )
    pool = Pool.of(
        [
            RolloutActor.options(**reserved.options(name)).remote(
                name, config.student, None, rollout, vocabulary=work.vocabulary,
                max_tokens=max_tokens(config), threads=reserved.threads(name),
            )
            for name in reserved.names("rollout")
        ],
        "rollout",
    )  # fmt: skip
    everyone = [writer, *pool.actors]
    spec = SamplingSpec(
        max_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        samples=rollout.num_generations,
        seed=zlib.crc32(f"{config.seed}/generate".encode()),
    )
    assert config.data.train is not None, "a run that samples has prompts"
    questions = Questions(config.data.train)

    def call(actor: Any, piece: range) -> tuple[Any, Any]:
        prompts = list(work.prompts[piece.start : piece.stop])
        answers, summary = actor.generate.options(num_returns=2).remote(prompts, spec)
        # What is kept is the writer's word: the answers themselves leave the object store with it.
        return writer.write.remote(piece.start, questions.of(prompts), answers), summary

    try:
        wait_for(everyone, config.cluster.start_timeout_s)
        told = _Told(progress, behind * rollout.num_generations, len(work.prompts) * rollout.num_generations)
        written = pool.map(left, call, told)
        for chunk in written:
            result_of(chunk.ref, "writer")
        for name in pool.lost:
            progress.say(f"{name} died; the others took over its work")
    finally:
        for actor in everyone:
            ray.kill(actor)


class _Told:
    """Shows how far it is, how fast, and how long it will take."""

    def __init__(self, progress: Progress, behind: int, total: int):
        self._progress, self._behind, self._total = progress, behind, total
        self._answers = self._tokens = 0
        self._began = time.monotonic()
        progress.phase("answers")
        progress.count(behind, total)

    def __call__(self, summary: BatchSummary) -> None:
        self._answers += len(summary)
        self._tokens += sum(summary.answer_tokens)
        seconds = time.monotonic() - self._began
        left = self._total - self._behind - self._answers
        self._progress.count(self._behind + self._answers, self._total)
        self._progress.show(
            drawn=f"{self._tokens / seconds:,.0f} tokens/s", ETA=clock(seconds / max(1, self._answers) * left)
        )
        _tell(self._progress, summary.dropped)


def _tell(progress: Progress, drops: Sequence[Dropped]) -> None:
    for line in summary_of(drops, recorded=False):
        progress.say(line)


def _cut(joined: Joined, config: RunConfig) -> str:
    return (
        f"{joined.cut:,} of {joined.answers:,} answers were cut at rollout.max_new_tokens ="
        f" {config.rollout.max_new_tokens} and are left out; raise it (with another --out), or keep them:"
        " --keep-cut"
    )
