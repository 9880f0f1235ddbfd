"""Stories that a tiny teacher tells, and a student of one of its layers: all that stories_start.yaml reads.

    python -m minillm_ray.benchmarks.recipes.stories FOLDER_OF_stories260K

stories260K is karpathy's 0.26M-parameter LLaMA on TinyStories, as a Hugging Face folder whose attention
heads are at least 32 wide (vLLM on CPUs takes no smaller ones).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...deploy.models.convert import cut_model

NUM_STORIES = 6000
PROMPT_TOKENS = 8
ANSWER_TOKENS = 48
BATCH = 500


def main(teacher: Path) -> None:
    """Write models/stories, models/stories-cut and data/stories.jsonl where one stands."""
    here = Path("models/stories")
    here.parent.mkdir(exist_ok=True)
    if not here.exists():
        here.symlink_to(teacher.resolve(), target_is_directory=True)
    cut_model(teacher, 1, Path("models/stories-cut"))
    Path("data").mkdir(exist_ok=True)
    with Path("data/stories.jsonl").open("w", encoding="utf-8") as lines:
        for prompt, rest in tell(teacher):
            lines.write(json.dumps({"instruction": prompt, "output": rest}) + "\n")


@torch.inference_mode()
def tell(teacher: Path) -> list[tuple[str, str]]:
    """(first words, what follows) of stories drawn from the teacher at temperature 1."""
    model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(teacher)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    torch.manual_seed(0)
    told: list[tuple[str, str]] = []
    for _ in range(NUM_STORIES // BATCH):
        begin = torch.full((BATCH, 1), start)
        ids = model.generate(
            begin, do_sample=True, top_k=0, min_new_tokens=PROMPT_TOKENS + 1,
            max_new_tokens=PROMPT_TOKENS + ANSWER_TOKENS, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        texts = [
            tokenizer.batch_decode(part, skip_special_tokens=True)
            for part in (ids[:, : PROMPT_TOKENS + 1], ids[:, PROMPT_TOKENS + 1 :])
        ]
        told += [(a, b) for a, b in zip(*texts, strict=True) if a.strip() and b.strip()]
    return told


if __name__ == "__main__":
    main(Path(sys.argv[1]))
