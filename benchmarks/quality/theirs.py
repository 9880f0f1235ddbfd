"""TRL's DistillationTrainer, which shows its student every few steps with the clock stopped meanwhile.

    python theirs.py SETTINGS.yaml

Imports nothing of ours: it runs where trl is installed and this project is not. It prints a line of JSON
whenever there is a student to look at, then waits for a word, "go" or "stop". float32 on the CPU, reverse KL
(beta = 1) on the student's own answers, one to a prompt, each trained on once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]


def main() -> None:
    """Train until the steps are done or somebody says stop."""
    asked: Values = yaml.safe_load(Path(sys.argv[1]).read_text())
    os.environ["OMP_NUM_THREADS"] = str(asked["threads"])
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", WANDB_DISABLED="true")
    import torch

    torch.set_num_threads(asked["threads"])
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    class Counting(DistillationTrainer):
        """Counts the answer tokens that it has drawn."""

        sampled = 0

        def _generate_single_turn(self, *args: Any, **more: Any) -> list[list[int]]:
            answers = super()._generate_single_turn(*args, **more)
            self.sampled += sum(map(len, answers))
            return answers

    class Shown(TrainerCallback):
        """The clock, which holds all of the training but the looking."""

        seconds, since = 0.0, 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self._preflight(asked["student"], state, control)

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % asked["every"] == 0:
                self.seconds += time.perf_counter() - self.since
                folder = Path(asked["out"]) / "students" / f"step-{state.global_step:04d}"
                trainer.model.save_pretrained(folder)
                self._preflight(str(folder), state, control)

        def _preflight(self, student: str, state: Any, control: Any) -> None:
            step, sampled = state.global_step, trainer.sampled
            line = {"step": step, "seconds": self.seconds, "tokens": sampled, "student": student}
            print(json.dumps(line), flush=True)
            control.should_training_stop |= sys.stdin.readline().strip() != "go"
            self.since = time.perf_counter()

    student, teacher = (
        AutoModelForCausalLM.from_pretrained(asked[name], dtype=torch.float32)
        for name in ("student", "teacher")
    )
    prompts = [json.loads(line)["instruction"] for line in Path(asked["prompts"]).read_text().splitlines()]
    config = DistillationConfig(
        output_dir=asked["out"], use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=asked["micro_batch_size"],
        gradient_accumulation_steps=asked["batch_size"] // asked["micro_batch_size"],
        max_steps=asked["steps"], seed=asked["seed"],
        max_completion_length=asked["max_new_tokens"], temperature=1.0, beta=1.0, top_p=1.0, top_k=0,
        learning_rate=asked["lr"], warmup_steps=asked["warmup_steps"],
        lr_scheduler_type="constant_with_warmup", adam_beta1=asked["betas"][0], adam_beta2=asked["betas"][1],
        adam_epsilon=asked["eps"], weight_decay=asked["weight_decay"], max_grad_norm=asked["clip_norm"],
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Counting(
        args=config,
        model=student,
        teacher_model=teacher,
        processing_class=AutoTokenizer.from_pretrained(asked["student"], padding_side="left"),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": p}] for p in prompts]}),
        callbacks=[Shown()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
