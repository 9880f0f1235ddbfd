"""The table of setting names that people bring from elsewhere, and what says the same here.

Elsewhere is an earlier draft of ours, TRL with Transformers, the MiniLLM reference code (LMOps), OpenRLHF or
vLLM. `suggestions` looks names up in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Source = Literal["ours", "TRL", "LMOps", "OpenRLHF", "vLLM"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One name as it is typed, and the settings of a run that say the same."""

    name: str
    """Dotted where it once stood in a section of ours."""
    settings: tuple[str, ...]
    """Settings or sections of a run file (of an evaluation file where only that has them); none = there is no
    such choice here, and the note says why."""
    source: Source
    note: str = ""
    """What differs in meaning."""


_Rows = Mapping[str, str | tuple[str, str]]


def _rows(source: Source, rows: _Rows) -> list[Suggestion]:
    pairs = {name: row if isinstance(row, tuple) else (row, "") for name, row in rows.items()}
    return [Suggestion(name, tuple(to.split()), source, note) for name, (to, note) in pairs.items()]


_SCHEDULE = "learner.optimizer.schedule"
_STEPS = (
    "it counts optimiser steps: one pass over N prompts takes N x rollout.num_generations x"
    " learner.num_iterations / learner.batch_size of them"
)
_BATCH = "learner.batch_size learner.micro_batch_size"
_PER_DEVICE = (
    "learner.batch_size counts the answers of one optimiser step over all ranks, learner.micro_batch_size"
    " those in one forward pass of one rank"
)
_WARMUP = "in optimiser steps, not a share of them"
_DROPPED = "longer prompts are dropped, never cut"
_LENGTHS = (
    "data.max_prompt_tokens rollout.max_new_tokens",
    "prompts and answers are limited each by itself",
)
_DTYPE = "learner.dtype rollout.dtype teacher_server.dtype"
_ONE_DEVICE = (
    "rollout.num_engines",
    "an engine holds whole models on one device; more engines share the work",
)
_WHOLE = "all weights are trained; there are no adapters"
_PLAIN = ("rollout.temperature rollout.top_p rollout.top_k", "nothing else shapes how answers are drawn")
_FILES = "metrics go to metrics.jsonl and TensorBoard files in the run's folder, at every optimiser step"
_KEPT = "the best student by validation.metric is always kept"
_BETA = (
    "GKD's beta is objective.jsd_beta, with objective.kind=kd and objective.divergence=jsd (0 and 1 are"
    " forward_kl and reverse_kl); GRPO's, a penalty against a reference model, is not here"
)
_CACHE = "in GiB of keys and values, those of both models; not a share of the device's memory"
_SECTION = "in it, actors is num_actors, precision is dtype, and hidden_precision is hidden_dtype"


def _renamed_engine(section: str) -> _Rows:
    return {
        f"{section}.actors": f"{section}.num_engines",
        f"{section}.precision": f"{section}.dtype",
        f"{section}.max_sequences": f"{section}.max_num_seqs",
        f"{section}.cache_gib": f"{section}.kv_cache_gib",
        f"{section}.eager": f"{section}.enforce_eager",
    }


_OURS: _Rows = {
    **_renamed_engine("rollout"),
    **_renamed_engine("engine"),
    "rollout.answers": "rollout.rollout_batch_size",
    "rollout.samples": "rollout.num_generations",
    "scoring": ("teacher_server", _SECTION),
    "scoring.actors": "teacher_server.num_actors",
    "scoring.precision": "teacher_server.dtype",
    "scoring.hidden_precision": "teacher_server.hidden_dtype",
    "scoring.batch_tokens": "teacher_server.batch_tokens",
    "scoring.drawn_logprobs": "teacher_server.drawn_logprobs",
    "scoring.reuse": "teacher_server.reuse",
    "learner.ranks": "learner.world_size",
    "learner.steps": "learner.max_steps",
    "learner.micro_batch": "learner.micro_batch_size",
    "learner.inner_epochs": "learner.num_iterations",
    "learner.precision": "learner.dtype",
    "learner.optimizer.clip_norm": "learner.max_grad_norm",
    "objective.clip_range": "objective.epsilon",
    "validation.every": "eval_steps",
    "validation.samples": "validation.num_generations",
    "validation.heldout_samples": "validation.test_num_generations",
    "checkpoint_every": "save_steps",
    "keep_checkpoints": "save_total_limit",
    "out": "output_dir",
    "data.heldout": "data.test",
    "seeds": "num_seeds",
}
_TRL: _Rows = {
    "model_name_or_path": "student.path",
    "teacher_model_name_or_path": "teacher.path",
    "model_revision": "student.revision",
    "teacher_model_revision": "teacher.revision",
    "trust_remote_code": ("", "code that comes with a model is never run"),
    "dataset_name": "data.train.path",
    "dataset_config": "data.train.subset",
    "dataset_train_split": "data.train.split",
    "dataset_test_split": ("data.validation.split", "data.validation chooses the best student"),
    "dataset_text_field": "text.column",
    "eval_dataset": ("data.validation.path", "data.validation chooses the best student"),
    "shuffle_dataset": "data.shuffle",
    "chat_template_path": "data.chat_template",
    "assistant_only_loss": ("data.train_on", "write data.train_on=all_assistant"),
    "completion_only_loss": ("data.train_on", "only answers are learned: data.train_on says which"),
    "max_prompt_length": ("data.max_prompt_tokens", _DROPPED),
    "max_completion_length": "rollout.max_new_tokens",
    "max_length": _LENGTHS,
    "max_seq_length": _LENGTHS,
    "per_device_train_batch_size": (_BATCH, _PER_DEVICE),
    "gradient_accumulation_steps": (
        _BATCH,
        "it follows from learner.batch_size / (learner.world_size x learner.micro_batch_size)",
    ),
    "per_device_eval_batch_size": (
        "rollout.max_num_seqs learner.micro_batch_size",
        "measuring runs in the batches of training",
    ),
    "generation_batch_size": "rollout.rollout_batch_size",
    "steps_per_generation": (
        "rollout.rollout_batch_size",
        "a set gives rollout.rollout_batch_size / learner.batch_size steps in each iteration over it",
    ),
    "num_generations_eval": "validation.num_generations",
    "num_train_epochs": ("learner.max_steps", _STEPS),
    "learning_rate": "learner.optimizer.lr",
    "lr_scheduler_type": _SCHEDULE,
    "lr_scheduler_kwargs": ("learner.optimizer.min_lr", "where a cosine schedule ends"),
    "warmup_ratio": ("learner.optimizer.warmup_steps", _WARMUP),
    "optim": "learner.optimizer.name",
    "adam_beta1": ("learner.optimizer.betas", "a list of both"),
    "adam_beta2": ("learner.optimizer.betas", "a list of both"),
    "adam_epsilon": "learner.optimizer.eps",
    "bf16": (_DTYPE, "write bfloat16, in each section by itself"),
    "fp16": (_DTYPE, "the learner trains in float32 or bfloat16; engines and the teacher can use float16"),
    "torch_dtype": _DTYPE,
    "gradient_checkpointing_kwargs": "learner.gradient_checkpointing",
    "disable_dropout": ("learner.dropout", "the other way round: learner.dropout=false"),
    "deepspeed": ("learner.zero_stage learner.offload", "two settings in place of a file"),
    "use_vllm": ("", "answers are always drawn by vLLM"),
    "vllm_gpu_memory_utilization": ("rollout.kv_cache_gib", _CACHE),
    "vllm_tensor_parallel_size": _ONE_DEVICE,
    "vllm_max_model_length": _LENGTHS,
    "lmbda": (
        "objective.sampled_share",
        "with objective.kind=kd; it is that share of every set, where GKD throws a coin for each batch",
    ),
    "beta": ("objective.jsd_beta", _BETA),
    "seq_kd": (
        "rollout.teacher_mix",
        "rollout.teacher_mix=1 draws by the teacher alone; or `minillm generate`, and then `minillm sft`",
    ),
    "rkl_advantage": "objective.long_term",
    "single_step_decomposition": "objective.single_step",
    "length_normalization": "objective.length_norm",
    "kd_temperature": ("rollout.temperature", "one temperature serves sampling and the loss"),
    "epsilon_high": ("objective.epsilon", "one width serves both sides"),
    "min_p": _PLAIN,
    "repetition_penalty": _PLAIN,
    "generation_kwargs": _PLAIN,
    "use_peft": ("", _WHOLE),
    "lora_r": ("", _WHOLE),
    "lora_alpha": ("", _WHOLE),
    "load_in_4bit": ("", _WHOLE),
    "run_name": "output_dir",
    "logging_dir": "output_dir",
    "logging_steps": ("", _FILES),
    "logging_strategy": ("", _FILES),
    "report_to": ("", _FILES),
    "log_completions": ("", "all answers are kept as Parquet files in rollouts/ of the run's folder"),
    "save_strategy": ("save_steps", "checkpoints come every so many optimiser steps"),
    "eval_strategy": ("eval_steps", "the student is measured every so many optimiser steps"),
    "metric_for_best_model": "validation.metric",
    "load_best_model_at_end": ("validation.metric", _KEPT),
    "resume_from_checkpoint": ("", "a stopped run goes on with `minillm resume`"),
    "push_to_hub": ("", "students are written to disk as plain Hugging Face folders"),
    "data_seed": ("seed", "one seed serves all"),
}
_LMOPS: _Rows = {
    "model_path": "student.path",
    "teacher_model_path": "teacher.path",
    "ckpt": "student.path",
    "teacher_ckpt": "teacher.path",
    "ckpt_name": "student.path",
    "teacher_ckpt_name": "teacher.path",
    "teacher_model_fp16": ("teacher_server.dtype", "write float16"),
    "type": ("objective.kind", "its lm is sft here"),
    "data_dir": "data.train.path",
    "prompt_data_dir": "data.train.path",
    "lm_data_dir": "text.path",
    "train_num": "data.train.limit",
    "dev_num": "data.validation.limit",
    "prompt_type": "data.template",
    "batch_size": (_BATCH, _PER_DEVICE),
    "total_iters": "learner.max_steps",
    "train_iters": "learner.max_steps",
    "epochs": ("learner.max_steps", _STEPS),
    "clip_grad": "learner.max_grad_norm",
    "lr": "learner.optimizer.lr",
    "lr_min": "learner.optimizer.min_lr",
    "lr_decay_style": _SCHEDULE,
    "scheduler_name": _SCHEDULE,
    "warmup_iters": "learner.optimizer.warmup_steps",
    "kd_ratio": (
        "objective.text_teacher_share objective.lm_share",
        "the teacher's share of the term on plain text; in kd write objective.lm_share = 1 - kd_ratio",
    ),
    "num_rollouts": ("rollout.rollout_batch_size", "answers of all devices together"),
    "ppo_epochs": "learner.num_iterations",
    "chunk_size": ("rollout.chunk rollout.max_num_seqs", "prompts sent at once, and answers drawn at once"),
    "cliprange": "objective.epsilon",
    "cliprange_reward": "objective.reward_clip",
    "reward_scaling": "objective.reward_scaling",
    "gamma": "objective.gamma",
    "length_norm": (
        "objective.length_norm",
        "LMOps normalises without its flag too, which changes only what it logs",
    ),
    "single_step_reg": "objective.single_step",
    "teacher_mixed_alpha": "rollout.teacher_mix",
    "lm_coef": "objective.lm_coef",
    "do_sample": ("rollout.temperature", "answers are always sampled"),
    "top_p": "rollout.top_p",
    "top_k": ("rollout.top_k", "0 keeps all tokens"),
    "no_repeat_ngram_size": _PLAIN,
    "num_beams": _PLAIN,
    "model_parallel": _ONE_DEVICE,
    "model_parallel_size": _ONE_DEVICE,
    "n_gpu": ("learner.world_size", "of the learner alone; engines and teachers are counted apart"),
    "seed_ppo": ("seed", "one seed serves all"),
    "seed_lm": ("seed", "one seed serves all"),
    "seed_order": ("seed", "one seed serves all"),
    "save": "output_dir",
    "save_interval": "save_steps",
    "eval_interval": "eval_steps",
    "log_interval": ("", _FILES),
    "peft": ("", _WHOLE),
}
_OPENRLHF: _Rows = {
    "pretrain": "student.path",
    "teacher_model": "teacher.path",
    "prompt_data": "data.train.path",
    "dataset": "data.train.path",
    "prompt_split": "data.train.split",
    "dataset_split": "data.train.split",
    "eval_split": "data.validation.split",
    "input_key": ("data.train.instruction data.train.messages", "a column of text, or of chats"),
    "output_key": "data.train.output",
    "label_key": "data.train.output",
    "max_samples": "data.train.limit",
    "apply_chat_template": ("data.template", "write data.template=chat"),
    "prompt_max_len": ("data.max_prompt_tokens", _DROPPED),
    "generate_max_len": "rollout.max_new_tokens",
    "max_len": _LENGTHS,
    "rollout_batch_size": (
        "rollout.rollout_batch_size",
        "it counts answers, where OpenRLHF counts prompts",
    ),
    "n_samples_per_prompt": "rollout.num_generations",
    "eval_n_samples_per_prompt": "validation.num_generations",
    "micro_rollout_batch_size": ("rollout.chunk", "prompts sent to an engine at once"),
    "train_batch_size": "learner.batch_size",
    "micro_train_batch_size": "learner.micro_batch_size",
    "max_epochs": (
        "learner.num_iterations learner.max_steps",
        "passes over one set of answers; passes over the data are counted in optimiser steps",
    ),
    "num_episodes": ("learner.max_steps", _STEPS),
    "actor_learning_rate": "learner.optimizer.lr",
    "lr_scheduler": _SCHEDULE,
    "lr_warmup_ratio": ("learner.optimizer.warmup_steps", _WARMUP),
    "adam_betas": "learner.optimizer.betas",
    "adam_offload": ("learner.offload", "write cpu"),
    "max_norm": "learner.max_grad_norm",
    "l2": "learner.optimizer.weight_decay",
    "eps_clip": "objective.epsilon",
    "reward_clip_range": ("objective.reward_clip", "one number, for both sides"),
    "kd_coef": ("objective.lm_share", "the rest of it: objective.lm_share = 1 - kd_coef"),
    "ptx_coef": "objective.lm_coef",
    "actor_num_gpus_per_node": ("learner.world_size", "ranks on all nodes together"),
    "actor_num_nodes": ("learner.world_size", "ranks on all nodes together"),
    "vllm_num_engines": "rollout.num_engines",
    "colocate_all_models": (
        "cluster.rollout_gpus cluster.teacher_gpus cluster.learner_gpus",
        "roles share a device where these are fractions of one",
    ),
    "max_ckpt_num": "save_total_limit",
    "save_path": "output_dir",
    "ckpt_path": "output_dir",
    "use_wandb": ("", _FILES),
    "use_tensorboard": ("", _FILES),
    "lora_rank": ("", _WHOLE),
}
_VLLM: _Rows = {
    "model": "student.path",
    "tokenizer": ("student.path", "the model's own tokenizer"),
    "dtype": _DTYPE,
    "n": "rollout.num_generations",
    "max_tokens": "rollout.max_new_tokens",
    "temperature": "rollout.temperature",
    "ignore_eos": "rollout.ignore_eos",
    "max_num_seqs": "rollout.max_num_seqs",
    "max_model_len": _LENGTHS,
    "max_num_batched_tokens": ("rollout.max_num_seqs", "answers at a time; vLLM chooses the tokens"),
    "enforce_eager": "rollout.enforce_eager",
    "gpu_memory_utilization": ("rollout.kv_cache_gib", _CACHE),
    "kv_cache_memory_bytes": ("rollout.kv_cache_gib", "in GiB"),
    "tensor_parallel_size": _ONE_DEVICE,
    "pipeline_parallel_size": _ONE_DEVICE,
    "data_parallel_size": ("rollout.num_engines", "each is one Ray actor"),
    "enable_prefix_caching": ("", "prefix caching is always on"),
    "quantization": ("", "engines hold the weights that the learner publishes, unquantised"),
    "enable_lora": ("", _WHOLE),
    "presence_penalty": _PLAIN,
    "frequency_penalty": _PLAIN,
}
SUGGESTIONS: tuple[Suggestion, ...] = (
    *_rows("ours", _OURS),
    *_rows("TRL", _TRL),
    *_rows("LMOps", _LMOPS),
    *_rows("OpenRLHF", _OPENRLHF),
    *_rows("vLLM", _VLLM),
)
"""Every name once; what the names of several libraries share stands with the first of them."""
