"""Everything about a run that can be checked without machines, and the plan of a run that passed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil

from ...common.config.run import RunConfig
from ...common.errors import ConfigError, Fault, InputError, ModelError, collect_error, merge_errors
from ...common.process import usable_cores
from ..data.load import RunData, load_run_data
from ..data.tokenize import Limit
from ..models.inspect import ModelFacts, inspect_model, shared_vocabulary
from ..models.token_ids import tokenizer_faults
from ..runtime.placement import bundles, needs_rollouts
from . import memory, rules
from .memory import GIB, Memory
from .model_notes import model_notes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STORE_SHARE = 0.3
"""Part of a machine's memory that Ray gives its object store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One kind of process of a run: how many, and what each reserves and holds."""

    role: str
    count: int
    cpus: float
    gpus: float
    threads: int | None
    """None = all cores of its machine, of which nothing is known here."""
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A run that can start: its models and data as they were read, and what each process will need."""

    vocabulary: int
    """Words that student and teacher share; ids are below it."""
    max_tokens: int
    """Most tokens of a prompt and its answer, in training or measuring."""
    student: ModelFacts
    teacher: ModelFacts | None
    tokenizer: PreTrainedTokenizerBase
    """The student's, with which all data was tokenised."""
    data: RunData
    processes: tuple[Process, ...]
    store: Memory
    """Ray's object store, on all machines together."""
    where: str
    """The machine or cluster that the run uses."""
    notes: tuple[str, ...]
    """What is not wrong, but worth knowing before the start."""


def check_run(config: RunConfig, later: Collection[str] = ()) -> Plan:
    """Check settings, models, tokenizers, data and declared machines; nothing is started or reserved.

    `later` names data sets (train, text ...) that will only be there when the run starts. Raises one error
    with all faults: ModelError or DataError if they are all of one kind, else ConfigError.
    """
    found: list[InputError] = []
    student, tokenizer = inspect_model(config.student, "student", found)
    teacher, teacher_tokenizer = None, None
    if config.teacher is not None:
        teacher, teacher_tokenizer = inspect_model(
            config.teacher, "teacher", found, quantised=not config.mixes_teacher
        )
    if tokenizer is not None and config.data.allow_control_tokens:
        found += _written_faults(config, tokenizer, [facts for facts in (student, teacher) if facts])
    vocabulary = None
    if student and tokenizer and (config.teacher is None or (teacher and teacher_tokenizer)):
        vocabulary = collect_error(found, shared_vocabulary, student, teacher, tokenizer, teacher_tokenizer)
    faults = config.faults()
    faults += rules.resource_faults(config.cluster, bundles(config))
    data = load_run_data(config, tokenizer, found, later) if tokenizer is not None else RunData()
    faults += _model_faults(config, student, teacher, vocabulary, data.answer_format.end_ids)
    found += rules.metric_errors(config.validation.metric, data.validation, config.teacher is not None)
    if faults:
        found.insert(0, ConfigError(*faults))
    if found:
        raise merge_errors(found)
    assert student is not None, "no fault, so there is a student"
    assert tokenizer is not None, "no fault, so there is a tokenizer"
    assert vocabulary is not None, "no fault, so there is a vocabulary"
    return _plan(config, student, teacher, vocabulary, tokenizer, data)


def _written_faults(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, models: Sequence[ModelFacts]
) -> list[ModelError]:
    """Whether both models have rows for control tokens that texts may hold."""
    path = config.student.path
    return [
        ModelError(*faults)
        for facts in models
        if (
            faults := tokenizer_faults(
                "student.path", path, tokenizer, facts.vocabulary, facts.path, written=True
            )
        )
    ]


def _model_faults(
    config: RunConfig,
    student: ModelFacts | None,
    teacher: ModelFacts | None,
    vocabulary: int | None,
    ends: Sequence[int],
) -> list[Fault]:
    """Whether the models can read what they will be given, and the engines hold them."""
    found: list[Fault] = []
    max_prompt = Limit("data.max_prompt_tokens", config.data.max_prompt_tokens)
    max_answer = Limit("rollout.max_new_tokens", config.rollout.max_new_tokens)
    if config.reads_prompts and (longest := config.max_tokens - max_prompt.value) > max_answer.value:
        max_answer = Limit("validation.max_new_tokens", longest)
    for name, facts in (("student", student), ("teacher", teacher)):
        if facts is None:
            continue
        if config.reads_prompts:
            found += rules.room_faults(name, facts, max_prompt, max_answer)
        if config.text is not None:
            found += rules.text_faults(name, facts, config.text)
        if needs_rollouts(config) and (name == "student" or config.mixes_teacher):
            found += rules.engine_faults(name, facts, config.cluster)
    if not needs_rollouts(config):
        return found
    if student is not None and (teacher is not None or not config.mixes_teacher):
        held = memory.in_engine(config, student, teacher)
        found += rules.cache_faults("rollout", config.rollout, held, config.max_tokens)
    if vocabulary is not None:
        found += rules.end_faults("student", config.student, vocabulary, max_answer, ends)
    return found


def _plan(
    config: RunConfig,
    student: ModelFacts,
    teacher: ModelFacts | None,
    vocabulary: int,
    tokenizer: PreTrainedTokenizerBase,
    data: RunData,
) -> Plan:
    plan = Plan(
        vocabulary=vocabulary,
        max_tokens=config.max_tokens,
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        data=data,
        processes=_processes(config, student, teacher, vocabulary),
        store=memory.store_memory(config, student, teacher, vocabulary),
        where=rules.where(config.cluster),
        notes=(),
    )
    notes = [
        *rules.preset_notes(config),
        *model_notes(config, data.answer_format.end_ids),
        *rules.data_notes(config, data),
        *_memory_notes(config, plan),
    ]
    return replace(plan, notes=tuple(notes))


def _processes(
    config: RunConfig, student: ModelFacts, teacher: ModelFacts | None, vocabulary: int
) -> tuple[Process, ...]:
    needs = {
        "learner": memory.learner_memory(config, student, teacher, vocabulary),
        "rollout": memory.rollout_memory(config, student, teacher, vocabulary),
    } | ({"teacher": memory.teacher_memory(config, teacher)} if teacher else {})
    wanted = bundles(config)
    found = [
        Process(
            role=one.role,
            count=sum(bundle.role == one.role for bundle in wanted),
            cpus=one.cpus,
            gpus=one.gpus,
            threads=_threads(config, one.role),
            memory=needs[one.role],
        )
        for one in {bundle.role: bundle for bundle in wanted}.values()
    ]
    writer = Process(
        role="writer",
        count=1,
        cpus=config.cluster.writer_cpus,
        gpus=0,
        threads=1,
        memory=memory.writer_memory(),
    )
    return (*found, writer)


def _threads(config: RunConfig, role: str) -> int | None:
    """Threads of each process of a role, as its actor will count them (`use_threads`)."""
    here = rules.where(config.cluster) == rules.LOCAL
    threads = config.cluster.threads or (usable_cores() if here else None)
    if role != "learner" or config.learner.world_size == 1:
        return threads
    # Ranks of one machine share its threads; elsewhere it is not known how they will lie.
    return max(1, threads // config.learner.world_size) if threads and here else None


def _memory_notes(config: RunConfig, plan: Plan) -> list[str]:
    notes: list[str] = []
    if needs_rollouts(config):
        held = memory.in_engine(config, plan.student, plan.teacher)
        at_once = memory.cache_tokens(config.rollout, held) // plan.max_tokens
        if at_once < config.rollout.max_num_seqs:
            notes.append(
                f"rollout.kv_cache_gib = {config.rollout.kv_cache_gib:g} holds {at_once} of the longest"
                f" answers at a time, rollout.max_num_seqs = {config.rollout.max_num_seqs}"
            )
    if plan.where != rules.LOCAL or rules.declared(config.cluster) is None:
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
