"""A model's answers to the questions of data.train, drawn by vLLM and kept as a data set to learn from.

A generation is read from an ordinary run file (`config.presets.generation_of`). Answers go from the engines
to the text sink, which writes them in parts; the driver only sees how long they are.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from ...actors.answer_files import ANSWERS, Joined, answered, join
from ...common.config.data import PromptSection
from ...common.config.generate import Author, GenerateConfig
from ...common.errors import ConfigError, DataError, Fault, InputError, collect_error, merge_errors
from ...common.logs import EventLog, driver_logs, person_sees
from ...common.types import BatchSummary, Dropped, Prompt, SamplingSpec
from ..cli.progress import Progress, clock, summary_of
from ..config.loader import CONFIG_FILE, Values, as_yaml, read_settings, validated_as
from ..config.presets import generation_of
from ..data.load import ID_PREFIX, PROBED
from ..data.readers import read_rows
from ..data.record import keep_record, refuse_other_data, start_time
from ..data.tokenize import Kept, Limit, TokenizedData, tokenize_rows
from ..models.inspect import inspect_model
from ..preflight import rules
from ..runtime.cluster import cluster
from ..runtime.parity import Parity
from ..runtime.placement import engine_bundles
from ..runtime.probes import make_probes
from ..runtime.workers import start_generate_workers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = EventLog(__name__)

KIND = "generate"
"""`do` in the config.yaml of a generation, which tells it from a run."""
SAMPLING = (
    *("model", "data.train", *(f"data.{name}" for name in PromptSection.model_fields), "seed"),
    *(
        f"rollout.{name}"
        for name in ("num_generations", "max_new_tokens", "temperature", "top_p", "top_k", "dtype")
    ),
)
"""Settings that decide what is answered and how; all answers of a folder have the same."""


OTHER_FOLDER = "write into another folder (--output-dir), or bring the old data back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a generation leaves behind."""

    file: Path
    joined: Joined
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GeneratePlan:
    """A generation that can start: its model and data as they were read."""

    prompts: Kept[Prompt]
    data: TokenizedData
    started: datetime
    """The time that chat templates were told."""
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    thresholds: tuple[int, ...]
    """See ModelFacts.thresholds."""


def load_generation(
    path: Path | str,
    overrides: Sequence[str],
    *,
    output_dir: Path,
    by: Author = "teacher",
    keep_cut: bool = False,
) -> GenerateConfig:
    """Read a run file as one that has `by` answer data.train. Raises ConfigError as `load_run` does."""
    source, faults = f"run file {path}", list[Fault]()
    values = read_settings(Path(path), [*overrides, _folder_override(output_dir)], source, faults)
    config = generation_of(values, by, keep_cut, faults)
    if faults or config is None:
        raise ConfigError(*faults, source=source)
    return config


def find_existing(folder: Path) -> GenerateConfig | None:
    """The generation whose answers are in `folder`; None if it holds something else."""
    if _saved(folder) is None:
        return None
    source, faults = f"{folder / CONFIG_FILE}", list[Fault]()
    values = read_settings(folder / CONFIG_FILE, [_folder_override(folder)], source, faults)
    config = validated_as(GenerateConfig, {k: v for k, v in values.items() if k != "do"}, faults)
    if faults or config is None:
        raise ConfigError(*faults, source=source)
    return config


def _folder_override(folder: Path) -> str:
    return f"output_dir={json.dumps(str(folder))}"


def _saved(folder: Path) -> Values | None:
    """The config.yaml of a generation, as it stands; None if there is none of a generation."""
    file = folder / CONFIG_FILE
    found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
    return found if isinstance(found, dict) and found.get("do") == KIND else None


def check_generation(config: GenerateConfig) -> GeneratePlan:
    """Everything that can be checked without machines, as `check_run` does it for runs."""
    found: list[InputError] = []
    facts, tokenizer = inspect_model(config.model, config.by, found)
    needed = engine_bundles(config.rollout, config.cluster)
    faults = config.faults() + rules.resource_faults(config.cluster, needed)
    if facts is not None:
        max_prompt = Limit("data.max_prompt_tokens", config.data.max_prompt_tokens)
        max_answer = Limit("rollout.max_new_tokens", config.rollout.max_new_tokens)
        faults += rules.room_faults(config.by, facts, max_prompt, max_answer)
        faults += rules.engine_faults(config.by, facts, config.cluster)
        faults += rules.cache_faults("rollout", config.rollout, [facts], config.max_tokens)
    rows = collect_error(found, read_rows, config.data.train, "data.train", config.plugins)
    data = prompts = None
    prefix, started = ID_PREFIX["train"], start_time(config.output_dir)
    if rows is not None and tokenizer is not None:
        data = collect_error(found, tokenize_rows, rows, prefix, config.prompts, tokenizer, started)
        prompts = collect_error(found, data.prompts) if data is not None else None
    if faults:
        found.insert(0, ConfigError(*faults, source="this generation"))
    if found:
        raise merge_errors(found, "this generation")
    assert facts is not None, "no fault, so there is a model"
    assert tokenizer is not None, "no fault, so there is a tokenizer"
    assert data is not None, "no fault, so there is data"
    assert prompts is not None, "no fault, so there are prompts"
    return GeneratePlan(
        prompts=prompts,
        data=data,
        started=started,
        tokenizer=tokenizer,
        vocabulary=min(facts.vocabulary, len(tokenizer)),
        thresholds=facts.thresholds,
    )


def generate(
    config: GenerateConfig, console: Console | None = None, plan: GeneratePlan | None = None
) -> Generated:
    """Answer every question of data.train; continues where an earlier call stopped.

    `plan` is what `check_generation` made of these settings, if they were checked already. Raises ConfigError
    if answers were begun there with other settings, and DataError if every answer was cut.
    """
    began, folder = time.monotonic(), config.output_dir
    refuse_other_settings(config)
    plan = plan or check_generation(config)
    refuse_other_data(folder, {"data.train": plan.prompts}, OTHER_FOLDER)
    keep_record(folder, plan.started, {"data.train": plan.prompts})
    _save(config)
    with Progress(console or Console()) as progress:
        _tell(progress, plan.prompts.dropped)
        done = answered(folder)
        left = list(pieces([n for n in range(len(plan.prompts)) if n not in done], config.rollout.chunk))
        if done:
            progress.say(f"{len(done):,} of {len(plan.prompts):,} questions are answered already")
        if left:
            with driver_logs(folder), person_sees(progress.say):
                _draw(config, plan, left, len(done), progress)
        joined = join(folder, keep_cut=config.keep_cut)
        cut = _cut_fault(joined, config)
        if joined.cut and not config.keep_cut:
            progress.say(str(cut))
        if joined.empty:
            progress.say(f"{joined.empty:,} answers ended before they said anything; training drops them")
    if not joined.written:
        raise DataError(cut)
    return Generated(file=folder / ANSWERS, joined=joined, seconds=time.monotonic() - began)


def pieces(numbers: Sequence[int], size: int) -> Iterator[range]:
    """Consecutive numbers in pieces of at most `size`; a gap ends a piece."""
    start = 0
    for end in range(1, len(numbers) + 1):
        whole = end - start == size
        if end == len(numbers) or whole or numbers[end] != numbers[end - 1] + 1:
            yield range(numbers[start], numbers[end - 1] + 1)
            start = end


def _save(config: GenerateConfig) -> None:
    """Keep all settings in config.yaml; `do` tells that it is not a run."""
    text = as_yaml({"do": KIND} | config.model_dump(mode="json"))
    head = "# Answers to data.train, by `minillm generate`; `minillm resume` continues here.\n"
    (config.output_dir / CONFIG_FILE).write_text(head + text, encoding="utf-8")


def refuse_other_settings(config: GenerateConfig) -> None:
    """Answers of one folder are all drawn in one way; only the machines may change. Raises ConfigError."""
    folder = config.output_dir
    if not (folder / CONFIG_FILE).exists():
        return
    existing = _saved(folder)
    if existing is None:
        way_out = "choose another folder (--output-dir)"
        fault = Fault("output_dir", folder, "holds something other than answers", way_out)
        raise ConfigError(fault, source="this generation")
    now = config.model_dump(mode="json")
    faults = []
    for key in SAMPLING:
        before, after = _at(existing, key), _at(now, key)
        if before != after:
            faults.append(
                Fault(
                    config.by if key == "model" else key,
                    after,
                    f", and the answers in {folder} were begun with {before}",
                    "set it back, or write into another folder (--output-dir)",
                    also=("output_dir",),
                )
            )
    if faults:
        raise ConfigError(*faults, source="this generation")


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _draw(
    config: GenerateConfig, plan: GeneratePlan, left: list[range], done: int, progress: Progress
) -> None:
    """Draw what is missing, on all engines, straight into parts."""
    progress.phase("starting engines")
    rollout = config.rollout
    spec = SamplingSpec(
        max_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        samples=rollout.num_generations,
        seed=zlib.crc32(f"{config.seed}/generate".encode()),
        end_ids=plan.data.end_ids(),
    )
    with cluster(config.cluster) as dashboard:
        if dashboard:
            progress.say(f"Ray dashboard: {dashboard}")
        texts = [prompt.token_ids for prompt in plan.prompts[:PROBED]]
        probes = make_probes(texts, longest=config.max_tokens, thresholds=plan.thresholds)
        parity = Parity(probes, plan.vocabulary, config.verify)
        if note := parity.ask_referee({"student": (config.model, rollout.dtype)}, config.cluster):
            progress.say(note)
        with start_generate_workers(
            config.model,
            plan.tokenizer,
            rollout,
            config.cluster,
            vocabulary=plan.vocabulary,
            max_tokens=config.max_tokens,
        ) as workers:
            parity.check(workers)
            samples = rollout.num_generations
            counter = _AnswerProgress(progress, done * samples, len(plan.prompts) * samples)
            workers.write_parts(config.output_dir, left, plan.prompts, plan.data.questions, spec, counter)
            for name in workers.lost:
                log.warning("%s died; the others took over its work", name)


class _AnswerProgress:
    """Shows how far it is, how fast, and how long it will take."""

    def __init__(self, progress: Progress, done: int, total: int):
        self._progress, self._done, self._total = progress, done, total
        self._answers = self._tokens = 0
        self._began = time.monotonic()
        progress.phase("answers")
        progress.count(done, total)

    def __call__(self, summary: BatchSummary) -> None:
        self._answers += len(summary)
        self._tokens += sum(summary.answer_tokens)
        seconds = time.monotonic() - self._began
        left = self._total - self._done - self._answers
        self._progress.count(self._done + self._answers, self._total)
        self._progress.show(
            drawn=f"{self._tokens / seconds:,.0f} tokens/s", ETA=clock(seconds / max(1, self._answers) * left)
        )
        _tell(self._progress, summary.dropped)


def _tell(progress: Progress, drops: Sequence[Dropped]) -> None:
    for line in summary_of(drops, recorded=False):
        progress.say(line)


def _cut_fault(joined: Joined, config: GenerateConfig) -> Fault:
    return Fault(
        "rollout.max_new_tokens",
        config.rollout.max_new_tokens,
        f"cut {joined.cut:,} of {joined.answers:,} answers, which are left out of {ANSWERS}",
        "raise it (with another --output-dir), or keep them: --keep-cut",
    )
