"""A small model from plain text only: a tokenizer, a LLaMA with random weights, then an ordinary run.

For studies on CPUs: `minillm pretrain-tiny`. A teacher and a student must share a tokenizer: the second is
made with the folder of the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ...common.config.data import TextConfig
from ...common.config.run import ModelConfig, RunConfig
from ...common.errors import ABSENT, ConfigError, Fault
from ..config.loader import Values, merge_defaults, read_settings, validated
from ..data.readers import read_documents
from ..data.rendering import end_id
from ..preflight.rules import CPU_HEAD_DIMS
from ..training.driver import Result
from ..training.launch import start_run
from ..training.run_dir import RunDir
from .inspect import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("<|pad|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, END = SPECIAL[:2]
"""The end of a text also stands before the first word of a chat, as between documents."""
NUM_BYTES = 256
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
HEAD_DIM = CPU_HEAD_DIMS[0]
SETS = 8
"""Batches in one set of blocks: one can validate or save after each set."""
DEFAULTS: dict[str, Any] = {
    "objective": {"kind": "sft"},
    "text": {"block_tokens": 128, "validation_blocks": 64},
    "learner": {
        "batch_size": 64,
        "micro_batch_size": 16,
        "optimizer": {"lr": 3e-3, "weight_decay": 0.1, "schedule": "cosine"},
    },
    "eval_steps": 100,
    "save_steps": 500,
}
"""Defaults of pre-training that differ from those of distillation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a LLaMA whose output layer is its embedding."""

    layers: int = 4
    width: int = 128
    heads: int | None = None
    """None = as many as the width has room for, at the smallest size that vLLM takes on CPUs."""
    positions: int = 512
    """Most tokens of a prompt and its answer."""
    vocabulary: int = 4000
    """Words of a new tokenizer; an old one brings its own number."""

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.heads or max(1, self.width // HEAD_DIM)

    @property
    def inner(self) -> int:
        """Width inside the feed-forward part: 8/3 of the width, as in LLaMA, in multiples of 32."""
        return -(-8 * self.width // 3 // 32) * 32

    def faults(self) -> list[Fault]:
        """Sizes that are impossible."""
        found = []
        least = NUM_BYTES + len(SPECIAL)
        if self.vocabulary < least:
            reason = f"has no room for {NUM_BYTES} bytes and {len(SPECIAL)} marks"
            found.append(Fault("--vocabulary", self.vocabulary, reason, f"give at least {least}"))
        if self.width % self.num_heads or self.width // self.num_heads not in CPU_HEAD_DIMS:
            found.append(
                Fault(
                    "--width",
                    self.width,
                    f"over {self.num_heads} heads gives heads of {self.width / self.num_heads:g}, and vLLM on"
                    f" CPUs takes {', '.join(map(str, CPU_HEAD_DIMS))}",
                    f"try --width {max(1, round(self.width / HEAD_DIM)) * HEAD_DIM} without --heads",
                    also=("--heads",),
                )
            )
        return found


def plan(
    files: Sequence[Path], output_dir: Path, steps: int, overrides: Sequence[str], shape: Shape
) -> RunConfig:
    """The run that trains the model. Raises ConfigError with all faults of sizes and settings."""
    missing = Fault("--text", ABSENT, "is missing", "name at least one file of text")
    faults = shape.faults() if files else [missing]
    values = read_settings(None, overrides, "pretrain-tiny", faults)
    text = files[0] if len(files) == 1 else output_dir / "text.jsonl"
    own: Values = {
        "student": {"path": str((output_dir / "start").absolute())},
        "text": {"path": str(text.expanduser().absolute())},
        "learner": {"max_steps": steps},
        "output_dir": str(output_dir),
    }
    asked = merge_defaults(merge_defaults(DEFAULTS, own), values)
    learner = asked["learner"]
    if isinstance(learner, dict):
        total, batch = learner.get("max_steps"), learner.get("batch_size")
        if isinstance(batch, int):
            asked = merge_defaults({"rollout": {"rollout_batch_size": SETS * batch}}, asked)
        if isinstance(total, int):
            asked = merge_defaults({"learner": {"optimizer": {"warmup_steps": min(100, total // 10)}}}, asked)
    config = validated(asked, faults)
    if faults or config is None:
        raise ConfigError(*faults, source="pretrain-tiny")
    return config


def pretrain(
    files: Sequence[Path],
    output_dir: Path,
    shape: Shape,
    *,
    steps: int = 1000,
    tokenizer: Path | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Result:
    """Make output_dir/start and train it on the text of `files`; output_dir/best is the result.

    Raises ConfigError, DataError or ModelError before anything is trained.
    """
    config = plan(files, output_dir, steps, overrides, shape)
    RunDir(config.output_dir).refuse_to_overwrite()
    texts = [text for file in files for text in read_documents(TextConfig(path=str(file.expanduser())))]
    known = load_tokenizer(ModelConfig(path=str(tokenizer)), "--tokenizer") if tokenizer else None
    words = known or train_tokenizer(texts, shape.vocabulary)
    end_id(words)
    if len(files) > 1:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        with (config.output_dir / "text.jsonl").open("w", encoding="utf-8") as rows:
            rows.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    size = make_model(shape, words, Path(config.student.path), seed=config.seed)
    screen = console or Console()
    screen.print(
        f"{config.student.path}: {size:,} parameters at random, {len(words):,} words", highlight=False
    )
    return start_run(config, screen)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of at most `vocabulary` words, fewer where the text has no more pairs to join."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        bos_token=END,
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, folder: Path, *, seed: int) -> int:
    """A LLaMA with random weights and its tokenizer, as a Hugging Face folder; returns its parameters."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    marks: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        head_dim=shape.width // shape.num_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        **marks,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **marks)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()
