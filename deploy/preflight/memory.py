"""The memory that each process of a run needs: parameters are counted, activations estimated.

A model is counted in every process that holds it. Estimates of activations were fitted to GPT-2 and LLaMA in
float32 on a CPU (10 to 20 % off there); allocators, and attention without a fused kernel, take more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...actors.vllm_engine import BLOCK_TOKENS, PREFILL_TOKENS
from ...common.config.run import EngineConfig, RunConfig
from ...common.divergence import PART_LOGITS
from ..models.inspect import ModelFacts

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MIB, GIB = 1 << 20, 1 << 30
RUNTIME = {"learner": 500 * MIB, "rollout": 1200 * MIB, "teacher": 450 * MIB, "writer": 400 * MIB}
"""What a role holds beside models and caches: Python, Ray, torch, and the engine of vLLM; measured."""
CHUNK_TENSORS = {"jsd": 4, "skew_kl": 4, "skew_reverse_kl": 4, "atkd": 5, "akl": 8}
"""[chunk, vocabulary] tensors that a divergence holds at a time, read off its code; 2 if it is not here."""
PARTS = ("student", "teacher", "gradients", "optimiser", "activations", "KV cache", "buckets", "runtime")
"""Columns of the plan, in order. A learner's "teacher" is only the frozen output layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one process by part, or of the object store."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


def rollout_memory(
    config: RunConfig, student: ModelFacts, teacher: ModelFacts | None, vocabulary: int
) -> Memory:
    """One vLLM engine; it holds the teacher too where answers are drawn from the mixture."""
    settings, size = config.rollout, BYTES[config.rollout.dtype]
    held = in_engine(config, student, teacher)
    tokens = min(PREFILL_TOKENS, settings.max_num_seqs * config.data.max_prompt_tokens)
    logits = (len(held) + 2) * settings.max_num_seqs * vocabulary * 4
    states = 0
    if config.reuses_states and teacher:
        # Of a piece of answers: as they are drawn, in one array, and answer by answer.
        drawn = settings.chunk * settings.num_generations * settings.max_new_tokens
        states = 3 * drawn * teacher.hidden * BYTES[config.teacher_server.hidden_dtype]
    # vLLM packs an output layer for the CPU apart from the embedding that it is tied to.
    heads = [m.head_parameters if m.tied and not config.cluster.rollout_gpus else 0 for m in held]
    weights = [(m.parameters + head) * size for m, head in zip(held, heads, strict=True)]
    return Memory(
        parts={
            "student": weights[0],
            "teacher": sum(weights[1:]),
            "activations": sum(_passing(m, tokens, size) for m in held) + logits + states,
            "KV cache": int(settings.kv_cache_gib * GIB),
            "runtime": RUNTIME["rollout"],
        }
    )


def teacher_memory(config: RunConfig, teacher: ModelFacts) -> Memory:
    """One teacher actor."""
    settings, size = config.teacher_server, BYTES[config.teacher_server.dtype]
    hidden = 2 * settings.batch_tokens * teacher.hidden * BYTES[settings.hidden_dtype]
    logits = 2 * 4 * PART_LOGITS[config.cluster.teacher_gpus > 0]
    return Memory(
        parts={
            "teacher": teacher.parameters * size,
            "activations": _passing(teacher, settings.batch_tokens, size) + hidden + logits,
            "runtime": RUNTIME["teacher"],
        }
    )


def learner_memory(
    config: RunConfig, student: ModelFacts, teacher: ModelFacts | None, vocabulary: int
) -> Memory:
    """One learner rank; ZeRO shares out the optimiser (1), the gradients (2) and the weights (3)."""
    learner = config.learner
    size, stage, published = BYTES[learner.dtype], learner.effective_zero_stage, BYTES[config.rollout.dtype]
    count, fraction = student.parameters, -(-student.parameters // learner.world_size)
    # ZeRO-3 gathers layer by layer; the largest piece is the output layer.
    weights = fraction * size + student.head_parameters * size if stage == 3 else count * size
    gradients = (fraction if stage >= 2 else count) * 4
    moments = (4 if learner.optimizer.name == "sgd" else 8) * (fraction if stage else count)
    master = 4 * fraction if stage else 0
    head = vocabulary * teacher.hidden * BYTES[config.teacher_server.dtype] if teacher else 0
    # Weights go into the store from where they lie, unless they are gathered, converted or fetched first.
    bucket = 0
    if stage == 3 or size != published or config.cluster.learner_gpus:
        bucket = min(max(learner.bucket_mib * MIB, student.head_parameters * published), count * published)
    return Memory(
        parts={
            "student": weights,
            "teacher": head if config.asks_teacher else 0,
            "gradients": gradients,
            "optimiser": moments + master,
            "activations": _trained(config, student, vocabulary),
            "buckets": bucket,
            "runtime": RUNTIME["learner"],
        }
    )


def writer_memory() -> Memory:
    """The writer holds a tokenizer and one set of answers."""
    return Memory(parts={"runtime": RUNTIME["writer"]})


def store_memory(
    config: RunConfig, student: ModelFacts, teacher: ModelFacts | None, vocabulary: int
) -> Memory:
    """Ray's object store: two versions of the weights, one set of answers, the teacher's output layer."""
    answers = config.rollout.rollout_batch_size * (
        config.data.max_prompt_tokens + config.rollout.max_new_tokens
    )
    drawn = config.rollout.rollout_batch_size * config.rollout.max_new_tokens
    states = head = 0
    if teacher is not None and config.asks_teacher:
        head = vocabulary * teacher.hidden * BYTES[config.teacher_server.dtype]
        states = drawn * teacher.hidden * BYTES[config.teacher_server.hidden_dtype]
    return Memory(
        parts={
            "student": 2 * student.parameters * BYTES[config.rollout.dtype],
            "teacher": head,
            "activations": states + 4 * answers + 5 * 4 * drawn,
        }
    )


def cache_tokens(engine: EngineConfig, models: Sequence[ModelFacts]) -> int:
    """Tokens whose keys and values fit into the cache of an engine that holds `models`, in whole blocks."""
    values = sum(2 * m.layers * m.kv_heads * m.head_dim for m in models)
    per_block = values * BYTES[engine.dtype] * BLOCK_TOKENS
    return int(engine.kv_cache_gib * GIB) // per_block * BLOCK_TOKENS


def in_engine(config: RunConfig, student: ModelFacts, teacher: ModelFacts | None) -> list[ModelFacts]:
    """The models that each rollout engine of a run holds."""
    return [student, teacher] if teacher is not None and config.mixes_teacher else [student]


def _passing(model: ModelFacts, tokens: int, size: int) -> int:
    """Bytes of a forward pass that keeps nothing."""
    return tokens * (4 * model.hidden + 2 * model.intermediate) * size


def _trained(config: RunConfig, student: ModelFacts, vocabulary: int) -> int:
    """Bytes of one micro-batch, kept for the backward pass, of the output layer's chunks, and of log-probs
    that are kept over inner epochs."""
    learner, size = config.learner, BYTES[config.learner.dtype]
    tokens = learner.micro_batch_size * (config.data.max_prompt_tokens + config.rollout.max_new_tokens)
    if config.text_alone:
        tokens = 0
    if config.text is not None:
        tokens = max(tokens, learner.micro_batch_size * config.text.block_tokens)
    layer = 12 * student.hidden + 6 * student.intermediate
    kept = (
        2 * student.hidden * student.layers + layer
        if learner.gradient_checkpointing
        else layer * student.layers
    )
    tensors = CHUNK_TENSORS.get(config.objective.divergence, 2) if config.objective.kind == "kd" else 2
    chunks = tensors * min(learner.head_chunk, tokens) * vocabulary * 4 + student.head_parameters * 4
    return tokens * kept * size + chunks + config.cached_positions(vocabulary) * vocabulary * 4
