"""All that can be found wrong without machines, and the plan of a run that passed: what stands where."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import psutil

from ...common.config.run import RunConfig
from ...common.errors import ConfigError, DataError, MinillmError, ModelError
from ..data.tokenize import Kept, load_blocks, load_passages, load_prompts
from ..models.inspect import ModelFacts, describe_model, load_tokenizer, shared_vocabulary
from ..runtime.placement import bundles, needs_rollouts
from . import memory
from .memory import GIB, Memory
from .rules import (
    cache_faults,
    declared,
    end_faults,
    end_notes,
    max_tokens,
    model_faults,
    resource_faults,
    where,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")
TEXT = ("text", "text held out")
"""What the records of plain text are called."""
STORE_SHARE = 0.3
"""Part of a machine's memory that Ray gives its object store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One kind of process of a run: how many, and what each reserves and holds."""

    role: str
    count: int
    cpus: float
    gpus: float
    threads: int
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run that can start: its models, its vocabulary, and what each process will need."""

    vocabulary: int
    """Words that student and teacher share; ids are below it."""
    max_tokens: int
    """Most tokens of a prompt and its answer, in training or measuring."""
    student: ModelFacts
    teacher: ModelFacts | None
    processes: tuple[Process, ...]
    store: Memory
    """Ray's object store, on all machines together."""
    where: str
    """The machine or cluster that the run stands on."""
    records: dict[str, int]
    """Usable records by data set, and blocks of text."""
    notes: tuple[str, ...]
    """What is not wrong, but worth knowing before the start."""


def check_run(config: RunConfig, later: Collection[str] = ()) -> Plan:
    """Look at settings, models, tokenizers, data and declared machines; nothing is started or reserved.

    `later` names data sets (train, text ...) that will only be there when the run starts. Raises ConfigError,
    ModelError or DataError; a ConfigError that lists them if they are of several kinds.
    """
    found: list[MinillmError] = []
    faults = config.faults() + resource_faults(config)
    student = collect_error(found, describe_model, config.student, "student")
    teacher = collect_error(found, describe_model, config.teacher, "teacher") if config.teacher else None
    tokenizer = collect_error(found, load_tokenizer, config.student, "student")
    for key, facts in (("student", student), ("teacher", teacher)):
        faults += model_faults(config, key, facts) if facts is not None else []
    vocabulary = None
    if student is not None and (teacher is not None or config.teacher is None):
        faults += cache_faults(config, student, teacher)
        if tokenizer is not None:
            vocabulary = collect_error(found, _vocabulary, config, student, teacher, tokenizer)
            faults += end_faults(config, vocabulary)
    data_check = _DataCheck(config, tokenizer, found, later) if tokenizer is not None else None
    records, notes = data_check.run() if data_check is not None else ({}, [])
    if faults:
        found.insert(0, ConfigError(*faults))
    if found:
        raise merge_errors(found)
    assert student is not None, "no fault, so there is a student"
    assert vocabulary is not None, "no fault, so there is a vocabulary"
    assert tokenizer is not None, "no fault, so there is a tokenizer"
    return _plan(config, student, teacher, vocabulary, records, [*end_notes(config, tokenizer), *notes])


def collect_error(found: list[MinillmError], action: Callable[..., T], *given: object) -> T | None:
    """What `action` gives; None if it fails, and then `found` has its error too."""
    try:
        return action(*given)
    except MinillmError as fault:
        found.append(fault)
        return None


def merge_errors(found: Sequence[MinillmError]) -> MinillmError:
    """One error for all: of their own kind if they are of one, else a ConfigError that lists them."""
    if len(found) == 1:
        return found[0]
    lines: list[str] = []
    for fault in found:
        lines += fault.faults if isinstance(fault, ConfigError) else [str(fault)]
    for kind in (ModelError, DataError):
        if all(isinstance(fault, kind) for fault in found):
            return kind("\n  ".join(lines))
    return ConfigError(*lines)


def _vocabulary(
    config: RunConfig, student: ModelFacts, teacher: ModelFacts | None, tokenizer: PreTrainedTokenizerBase
) -> int:
    theirs = load_tokenizer(config.teacher, "teacher") if config.teacher else None
    return shared_vocabulary(student, teacher, tokenizer, theirs)


class _DataCheck:
    """Loads all data once: how many records can be used, and what is worth knowing of them."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerBase,
        found: list[MinillmError],
        later: Collection[str],
    ):
        self._config, self._tokenizer, self._found, self._later = config, tokenizer, found, later
        self._records: dict[str, int] = {}
        self._notes: list[str] = []

    def run(self) -> tuple[dict[str, int], list[str]]:
        config = self._config
        if config.data.train is not None:
            self._at("train", load_passages if config.given_answers else load_prompts)
        if config.data.validation is not None:
            by_loss = config.validation.metric == "loss"
            kept = self._at("validation", load_passages if by_loss else load_prompts)
            if kept is not None and not by_loss:
                self._check_metric(kept)
        if config.data.test is not None:
            self._at("test", load_prompts)
        if config.text is not None and "text" not in self._later:
            blocks = collect_error(self._found, load_blocks, config, self._tokenizer)
            parts = (
                collect_error(self._found, blocks.split, config.text.validation_blocks) if blocks else None
            )
            if parts is not None:
                self._records |= {
                    name: len(part) for name, part in zip(TEXT, parts, strict=True) if len(part)
                }
        if config.text is not None and config.objective.kind == "sft" and not config.text_alone:
            self._notes.append("text is not used: objective.kind = sft learns from data.train alone")
        mix = config.rollout.teacher_mix
        if config.objective.kind == "kd" and config.samples_answers and 0 < mix < 1:
            self._notes.append(
                f"kd learns from answers of student and teacher mixed (rollout.teacher_mix = {mix:g});"
                " GKD's and DistiLLM's are the student's own: rollout.teacher_mix=0"
            )
        self._compare_with_a_set()
        return self._records, self._notes

    def _at(self, name: str, load: Callable[..., Kept]) -> Kept | None:
        if name in self._later:
            return None
        kept = collect_error(self._found, load, self._config, name, self._tokenizer)
        if kept is not None:
            self._records[name] = len(kept)
            if kept.dropped:
                count = len(kept.dropped)
                reasons = ", ".join(sorted({drop.reason for drop in kept.dropped}))
                self._notes.append(f"data.{name}: {count} records are dropped ({reasons})")
        return kept

    def _check_metric(self, prompts: Kept) -> None:
        """Whether validation.metric can be measured on these prompts."""
        bare = sum(not prompt.references for prompt in prompts)
        metric = self._config.validation.metric
        fraction = f"{bare} of {len(prompts)} prompts of data.validation"
        if metric == "rouge_l" and bare:
            self._found.append(
                DataError(
                    f"validation.metric = rouge_l needs right answers, and {fraction} have none; set"
                    " validation.metric=reverse_kl, or name their column in data.validation.output"
                )
            )
        elif metric == "auto" and bare and self._config.teacher is None:
            self._found.append(
                DataError(
                    f"validation.metric = auto has nothing to measure: {fraction} have no right answer, and"
                    " there is no teacher; name their column in data.validation.output, or set teacher.path"
                )
            )

    def _compare_with_a_set(self) -> None:
        rollout, name = self._config.rollout, "text" if self._config.text_alone else "train"
        have = self._records.get(name)
        need = max(self._config.sampled_answers // rollout.num_generations, self._config.given_answers)
        if have is not None and have < need:
            where = "text" if self._config.text_alone else "data.train"
            self._notes.append(f"a set takes {need} records, {where} has {have}: some come twice in it")


def _plan(
    config: RunConfig,
    student: ModelFacts,
    teacher: ModelFacts | None,
    vocabulary: int,
    records: dict[str, int],
    notes: list[str],
) -> Plan:
    needs = {
        "learner": memory.learner_memory(config, student, teacher, vocabulary),
        "rollout": memory.rollout_memory(config, student, teacher, vocabulary),
    } | ({"teacher": memory.teacher_memory(config, teacher)} if teacher else {})
    standing = bundles(config, os.cpu_count() or 1)
    processes = [
        Process(
            role=one.role,
            count=sum(p.role == one.role for p in standing),
            cpus=one.cpus,
            gpus=one.gpus,
            threads=one.threads,
            memory=needs[one.role],
        )
        for one in {p.role: p for p in standing}.values()
    ]
    writer = Process(
        role="writer",
        count=1,
        cpus=config.cluster.writer_cpus,
        gpus=0,
        threads=1,
        memory=memory.writer_memory(),
    )
    plan = Plan(
        vocabulary=vocabulary,
        max_tokens=max_tokens(config),
        student=student,
        teacher=teacher,
        processes=(*processes, writer),
        store=memory.store_memory(config, student, teacher, vocabulary),
        where=where(config.cluster),
        records=records,
        notes=(),
    )
    return replace(plan, notes=(*notes, *_memory_notes(config, plan)))


def _memory_notes(config: RunConfig, plan: Plan) -> list[str]:
    notes: list[str] = []
    if needs_rollouts(config):
        at_once = memory.cache_tokens(config, plan.student, plan.teacher) // plan.max_tokens
        if at_once < config.rollout.max_num_seqs:
            notes.append(
                f"rollout.kv_cache_gib = {config.rollout.kv_cache_gib:g} holds {at_once} of the longest answers at"
                f" a time, rollout.max_num_seqs = {config.rollout.max_num_seqs}"
            )
    if plan.where != "a local Ray cluster" or declared(config.cluster) is None:
        return notes
    have = psutil.virtual_memory().total
    need = plan.store.total + sum(p.count * p.memory.total for p in plan.processes if not p.gpus)
    if need > have:
        notes.append(
            f"all processes need about {need / GIB:.1f} GiB, and this machine has {have / GIB:.1f}: use"
            " bfloat16 or smaller models, fewer actors, or a smaller learner.micro_batch_size"
        )
    if plan.store.total > STORE_SHARE * have:
        notes.append(
            f"the object store needs about {plan.store.total / GIB:.1f} GiB, and Ray gives it"
            f" {STORE_SHARE * have / GIB:.1f}: lower rollout.rollout_batch_size, or set"
            " teacher_server.hidden_dtype=bfloat16"
        )
    return notes
