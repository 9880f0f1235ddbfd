"""One TRL trainer on the race's prompts, in an environment of its own; prints seconds of each optimiser step.

    python theirs.py distillation|gkd|minillm STUDENT TEACHER PROMPTS.jsonl --answers 16 --tokens 48

Imports nothing of ours: it runs where trl is installed and this project is not. float32 on the CPU, answers
of exactly --tokens tokens (fewer are forbidden, which suppresses the end tokens), reverse KL, one answer to a
prompt. Models, batch and threads are those of the other side.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

Values = dict[str, Any]
TRAINERS = ("distillation", "gkd", "minillm")


def main() -> None:
    """Train for some steps and print one line of JSON."""
    args = _arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", WANDB_DISABLED="true")
    import torch

    torch.set_num_threads(args.threads)
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Watch(TrainerCallback):
        """When each optimiser step ended."""

        def __init__(self) -> None:
            self.ends = [0.0]

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ends = [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    tokenizer = AutoTokenizer.from_pretrained(args.student, padding_side="left")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (args.student, args.teacher)
    )
    prompts = [json.loads(line)["instruction"] for line in args.prompts.read_text().splitlines()]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    watch = Watch()
    with tempfile.TemporaryDirectory() as out:
        shared: Values = {
            "output_dir": out,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": args.micro_batch,
            "gradient_accumulation_steps": args.answers // args.micro_batch,
            "max_steps": args.steps,
            "learning_rate": 5e-6,
            "temperature": 1.0,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        make = {"distillation": _distillation, "gkd": _gkd, "minillm": _minillm}[args.trainer]
        given: Values = {
            "model": student,
            "teacher_model": teacher,
            "processing_class": tokenizer,
            "callbacks": [watch],
        }
        trainer = make(args, shared, given, chats)
        trainer.train()
    steps = [after - before for before, after in zip(watch.ends, watch.ends[1:], strict=False)]
    print(json.dumps({"trainer": args.trainer, "seconds": steps, "last_loss": _last_loss(trainer)}))


def _distillation(args: Any, shared: Values, given: Values, chats: list[Any]) -> Any:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    more: Values = {"generation_kwargs": {"min_new_tokens": args.tokens}}
    if args.vllm:
        more = {"use_vllm": True, "generation_kwargs": {"min_tokens": args.tokens}}
    config = DistillationConfig(
        **shared, **more, max_completion_length=args.tokens, beta=1.0, top_p=1.0, top_k=0, logging_steps=1
    )
    return DistillationTrainer(args=config, train_dataset=Dataset.from_dict({"prompt": chats}), **given)


def _gkd(args: Any, shared: Values, given: Values, chats: list[Any]) -> Any:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # pyright: ignore[reportMissingImports]

    config = GKDConfig(
        **shared, max_new_tokens=args.tokens, max_length=256, lmbda=1.0, beta=1.0, logging_steps=1
    )
    # It divides by the length of the data set's answer, so that answer is as long as those it draws.
    reply = {"role": "assistant", "content": "a " * args.tokens}
    rows = Dataset.from_dict({"messages": [[*chat, reply] for chat in chats]})
    trainer = GKDTrainer(args=config, train_dataset=rows, **given)
    trainer.generation_config.min_new_tokens = args.tokens
    return trainer


def _minillm(args: Any, shared: Values, given: Values, chats: list[Any]) -> Any:
    from datasets import Dataset
    from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer  # pyright: ignore[reportMissingImports]

    class Reusing(MiniLLMTrainer):
        """Leaves the kept answers as they are.

        1.14.2 writes the graph of a loss into them, and so cannot learn from them a second time:
        num_iterations > 1 ends in autograd's "backward through the graph a second time".
        """

        def compute_loss(self, model: Any, inputs: Values, *rest: Any, **more: Any) -> Any:
            return super().compute_loss(model, dict(inputs), *rest, **more)

    # It is built on GRPO, which does not take one answer to a prompt: two to each of half as many prompts.
    config = MiniLLMConfig(
        **shared, max_completion_length=args.tokens, num_generations=2, num_iterations=args.num_iterations,
        generation_kwargs={"min_new_tokens": args.tokens}, beta=0.0, top_p=1.0, top_k=0, logging_steps=1,
        gamma=1.0, length_normalization=True, rkl_advantage=True, single_step_decomposition=True,
    )  # fmt: skip
    return Reusing(args=config, train_dataset=Dataset.from_dict({"prompt": chats}), **given)


def _last_loss(trainer: Any) -> float | None:
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses[-1] if losses else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--num-iterations", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vllm", action="store_true", help="TRL's own vLLM mode (distillation alone)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
