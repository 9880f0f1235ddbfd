"""The settings of a run, as one tree.

Every field says its unit in the docstring beneath it. Unknown keys are refused. A value that is wrong by
itself is refused by its type, values that contradict each other by `RunConfig.faults`. `load_run` in
`deploy.config.loader` reads YAML and dotted overrides into it and reports all faults at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import Fault
from .base import METRICS_SINKS, Count, Dtype, Fraction, NonNegative, Positive, Section
from .data import DataConfig, PromptSettings, TextConfig
from .objective import ObjectiveConfig
from .run_faults import run_faults

NUM_ITERATIONS = 4
"""Passes of MiniLLM over each set of answers, as in the paper."""


class ModelConfig(Section):
    """One causal language model."""

    path: str
    """A local folder or a name on the Hugging Face hub; safetensors only."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""


class EngineConfig(Section):
    """vLLM engines, and how they draw."""

    num_engines: Count = 1
    """vLLM engines, one Ray actor each."""
    chunk: Count = 64
    """Prompts sent to an actor at once; what travels through the object store as one piece."""
    max_new_tokens: Count = 256
    """Longest answer, end-of-sequence token included."""
    temperature: Positive = 1.0
    """Warps each network before the mixing."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keeps the smallest set of tokens with this mass, in each network before the mixing."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keeps the k best tokens of each network before the mixing; 0 = all."""
    dtype: Dtype = "float32"
    """Of weights, keys and values inside vLLM."""
    max_num_seqs: Count = 64
    """Answers that one engine works on at a time."""
    kv_cache_gib: Positive = 0.5
    """Memory for keys and values in each engine, of both networks together."""
    enforce_eager: bool = True
    """Run vLLM without compiling. false needs a C++ compiler and a longer start."""


class RolloutConfig(EngineConfig):
    """How answers are drawn to learn from."""

    rollout_batch_size: Count = 256
    """Answers collected with one set of weights, over which the inner epochs run; given ones included."""
    num_generations: Count = 1
    """Answers to each prompt."""
    teacher_mix: Fraction = 0.2
    """Share of the teacher in the sampling mixture, alpha of equation 4. 0 = the student only."""
    ignore_eos: bool = False
    """Let answers run on to max_new_tokens: for measuring speed, not for learning."""


class TeacherServerConfig(Section):
    """How the teacher scores answers."""

    num_actors: Count = 1
    """Copies of the teacher, one Ray actor each."""
    batch_tokens: Count = 2048
    """Most tokens, padding included, in one forward pass. More keeps a GPU busier, and pads more."""
    dtype: Dtype = "float32"
    """Of the teacher's weights."""
    hidden_dtype: Dtype = "float32"
    """Of the hidden states that travel to the learner, where the objective asks for them."""
    drawn_logprobs: bool = False
    """Log-probs of the answers' tokens also where the loss reads none (kd): for the rollout files and
    rollout/sampled_kl, at the price of a product with the teacher's output layer."""
    reuse: bool = True
    """Take the teacher's states from mixed sampling, which has computed them, in place of another pass: at
    temperature 1, where rollout.dtype is the teacher's. Checked on an answer of the first set."""


class OptimizerConfig(Section):
    """How gradients become steps."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """From torch.optim."""
    lr: Positive = 5e-6
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Of Adam; sgd takes the first as its momentum."""
    eps: Positive = 1e-8
    """Of Adam."""
    weight_decay: NonNegative = 1e-6
    """Decoupled for adamw."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps from 0 to the peak."""
    min_lr: NonNegative = 0.0
    """Where a cosine schedule ends."""


class LearnerConfig(Section):
    """How the student learns."""

    world_size: Count = 1
    """Data-parallel DeepSpeed ranks, one Ray actor each."""
    max_steps: Count = 5000
    """Optimiser steps of the run."""
    batch_size: Count = 64
    """Answers in one optimiser step, over all ranks."""
    micro_batch_size: Count = 8
    """Answers in one forward pass of one rank."""
    num_iterations: Count | None = None
    """Passes over each set of answers. null = 4 for minillm, 1 for its preset opd and for kd. Sets of
    given answers only are always passed once."""
    token_budget: Count | None = None
    """Trained answer tokens after which the run ends, each counted as often as it is met. null = only the
    steps end it; they also shape the schedule. For comparing methods at one budget."""
    optimizer: OptimizerConfig = OptimizerConfig()
    max_grad_norm: NonNegative = 1.0
    """Largest global gradient norm; 0 = no clipping."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO: 1 shares out the optimiser, 2 the gradients too, 3 the weights too."""
    offload: Literal["none", "cpu"] = "none"
    """cpu = optimiser state (and weights, at stage 3) live in main memory; for GPU learners."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 keeps a float32 master copy in the optimiser."""
    dropout: bool | None = None
    """The student's own dropout while it learns. null = off where answers are sampled, else the student in
    training is not the one that sampled (the reference code too); on where all are given."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    head_chunk: Count = 512
    """Answer positions for which logits exist at a time."""
    keep_logprobs_mib: Annotated[int, Field(ge=0)] = 1024
    """Most memory of a rank, in MiB, for the teacher's log-probs over the whole vocabulary, kept over the
    inner epochs of a set. Where a set of longest answers would not fit none are kept. 0 = never."""
    bucket_mib: Count = 64
    """Bytes of one weight bucket on its way to the rollout actors, in MiB."""

    @property
    def effective_zero_stage(self) -> int:
        """The ZeRO stage that runs: without ZeRO gradients are summed in bfloat16, at stage 1 in float32."""
        return max(1, self.zero_stage) if self.dtype == "bfloat16" else self.zero_stage


class ValidationConfig(Section):
    """How the student is measured, and what chooses the best one."""

    metric: Literal["auto", "rouge_l", "reverse_kl", "loss"] = "auto"
    """Chooses the best student. auto = rouge_l where all prompts have references, else reverse_kl."""
    num_generations: Count = 1
    """Answers to each validation prompt, drawn from the student only."""
    test_num_generations: Count = 3
    """Answers, by as many seeds, to each held-out prompt, before and after the run."""
    max_new_tokens: Count | None = None
    """Longest answer; null = as in training."""


class VerifyConfig(Section):
    """When processes that hold the same model are taken to compute the same."""

    tolerance: Positive | None = None
    """Most nats by which a token's log-prob may differ; null = 1e-3 where all is float32, else 0.2."""
    within: Fraction = 0.99
    """Share of the probes' tokens that must keep to it."""
    on_engine_gap: Literal["stop", "warn"] = "stop"
    """What happens where learner/engine_gap, on sampled answers, is beyond the tolerance later on."""
    referee: bool = True
    """Read the probes by a plain forward pass of transformers too, before actors start. false = processes are
    compared with each other alone."""


class ClusterConfig(Section):
    """What the processes of a run reserve. Those that take turns reserve fractions of a CPU."""

    address: str | None = None
    """null = the cluster this job runs in, else a new local one; "auto" or "ray://..." = that cluster."""
    dashboard: bool = True
    """Start the Ray dashboard with a local cluster."""
    cpus: Count | None = None
    """CPUs that a local cluster declares, whole ones as Ray wants them; null = the cores that the driver may
    use."""
    rollout_cpus: Positive = 0.5
    teacher_cpus: Positive = 0.5
    learner_cpus: Positive = 0.4
    writer_cpus: Positive = 0.2
    rollout_gpus: NonNegative = 0.0
    teacher_gpus: NonNegative = 0.0
    learner_gpus: NonNegative = 0.0
    threads: Count | None = None
    """Threads of a rollout or teacher actor; null = all cores that it may use where it runs, since roles take
    turns. Ranks of one machine share them."""
    start_timeout_s: Positive = 600.0
    """How long actors may take to start."""


class RunConfig(Section):
    """All settings of a run."""

    student: ModelConfig
    teacher: ModelConfig | None = None
    data: DataConfig = DataConfig()
    text: TextConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    teacher_server: TeacherServerConfig = TeacherServerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    learner: LearnerConfig = LearnerConfig()
    validation: ValidationConfig = ValidationConfig()
    verify: VerifyConfig = VerifyConfig()
    cluster: ClusterConfig = ClusterConfig()
    output_dir: Path = Path("runs/minillm")
    """Folder of the run: settings, metrics, plots, rollouts, checkpoints."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything random."""
    eval_steps: Count = 100
    """Optimiser steps between two measurements on data.validation; rounded up to whole sets of answers."""
    save_steps: Count = 500
    """Optimiser steps between checkpoints; rounded up to whole sets of answers."""
    metrics_sinks: tuple[str, ...] = METRICS_SINKS
    """Where metrics go beside metrics.jsonl: tensorboard, ray (the metrics endpoint of Ray), or what a plugin
    offers."""
    plugins: tuple[str, ...] = ()
    """Python modules that offer divergences or metrics sinks; every process of the run imports them."""
    save_total_limit: Count = 2
    """Older ones are deleted; the best student is kept apart."""

    @property
    def sampled_answers(self) -> int:
        """Sampled answers of each set, in groups of rollout.num_generations; the data gives the rest."""
        groups = round(
            self.objective.share_sampled * self.rollout.rollout_batch_size / self.rollout.num_generations
        )
        return groups * self.rollout.num_generations

    @property
    def given_answers(self) -> int:
        """Answers of each set that come from the data."""
        return self.rollout.rollout_batch_size - self.sampled_answers

    @property
    def text_alone(self) -> bool:
        """Whether the given answers are blocks of plain text: every token but a block's first is learned."""
        return self.objective.kind == "sft" and self.text is not None and self.data.train is None

    @property
    def samples_answers(self) -> bool:
        """Whether the run trains on sampled answers, with or without given ones."""
        return self.sampled_answers > 0

    @property
    def reuses_states(self) -> bool:
        """Whether mixed sampling has already computed all that scoring its answers would."""
        mixed = self.samples_answers and self.rollout.teacher_mix > 0 and self.teacher is not None
        alike = self.rollout.dtype == self.teacher_server.dtype and self.rollout.temperature == 1
        return mixed and alike and self.teacher_server.reuse and self.objective.needs_teacher_hidden

    @property
    def measures_answers(self) -> bool:
        """Whether answers are drawn only to be measured: on validation or held-out prompts."""
        by_answers = self.data.validation is not None and self.validation.metric != "loss"
        return by_answers or self.data.test is not None

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher has anything to do: in the loss, or where the reverse KL is measured."""
        return self.teacher is not None and (self.objective.kind != "sft" or self.measures_answers)

    @property
    def uses_dropout(self) -> bool:
        """Whether the student's dropout is on while it learns."""
        return not self.samples_answers if self.learner.dropout is None else self.learner.dropout

    @property
    def num_iterations(self) -> int:
        """Passes over each set: one over given answers, which return with the next pass over the data."""
        if not self.samples_answers:
            return 1
        once = self.objective.kind != "minillm" or self.objective.preset == "opd"
        return self.learner.num_iterations or (1 if once else NUM_ITERATIONS)

    @property
    def steps_per_set(self) -> int:
        """Optimiser steps made from one set of answers."""
        return self.rollout.rollout_batch_size // self.learner.batch_size * self.num_iterations

    def cached_positions(self, vocabulary: int) -> int:
        """Answer positions of a set for which each rank keeps the teacher's float32 log-probs over its inner
        epochs: all of them, or none if they take more than learner.keep_logprobs_mib."""
        positions = self.rollout.rollout_batch_size * self.rollout.max_new_tokens
        asked = self.num_iterations > 1 and self.objective.needs_teacher_hidden
        fits = positions * vocabulary * 4 <= self.learner.keep_logprobs_mib << 20
        return positions if asked and fits else 0

    @property
    def prompts(self) -> PromptSettings:
        """How records become prompts."""
        return PromptSettings(how=self.data, section="data.")

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt and its answer, in training or measuring."""
        if self.text is not None and not self.reads_prompts:
            return self.text.block_tokens
        longest = self.rollout.max_new_tokens
        if self.data.validation is not None or self.data.test is not None:
            longest = max(longest, self.validation.max_new_tokens or 0)
        return self.data.max_prompt_tokens + longest

    @property
    def reads_prompts(self) -> bool:
        """Whether the run has any data but plain text."""
        return not self.text_alone or self.data.validation is not None or self.data.test is not None

    @property
    def mixes_teacher(self) -> bool:
        """Whether the rollout engines hold the teacher beside the student."""
        return self.samples_answers and self.teacher is not None and self.rollout.teacher_mix > 0

    def preset_overrides(self) -> dict[str, tuple[Any, Any]]:
        """Settings other than objective.preset has them: name -> (the preset's value, the value here)."""
        found = {f"objective.{name}": values for name, values in self.objective.preset_overrides().items()}
        if self.objective.preset == "opd" and self.samples_answers and self.num_iterations != 1:
            found["learner.num_iterations"] = 1, self.num_iterations
        return found

    def resolved(self) -> RunConfig:
        """The same run with an absolute folder, and defaults that depend on other settings written out."""
        learner = self.learner.model_copy(update={"num_iterations": self.num_iterations})
        folder = self.output_dir.expanduser().resolve()
        return self.model_copy(update={"learner": learner, "output_dir": folder})

    def faults(self) -> list[Fault]:
        """What is wrong between settings, each with key, value and way out."""
        return run_faults(self)
