"""Records by `datasets`, put into a chat template and tokenised at once: how runs read them at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read(path: Path, tokenizer: Any) -> int:
    """Tokens of all prompts in a file of instructions."""
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache")
    )
    columns = zip(rows["instruction"][:], rows["input"][:], rows["output"][:], strict=True)
    records = []
    for instruction, further, output in columns:
        turns = [{"role": "user", "content": f"{instruction}\n{further}" if further else instruction}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        records.append((turns, text, output))
    found = tokenizer([text for _, text, _ in records], add_special_tokens=False)
    return sum(map(len, found["input_ids"]))
