"""Two models of the paper's sizes with random weights, to see a run of that size where there is no hub.

python -m minillm_ray.benchmarks.recipes.gpt2_size FOLDER_WITH_A_TOKENIZER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

SIZES: dict[str, Any] = {
    "gpt2-120m": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-1500m": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}


def main(tokenizer: Path) -> None:
    """Write both into models/, with the tokenizer of another model of at most 50,257 words."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    for name, sizes in SIZES.items():
        torch.manual_seed(len(name))
        config = GPT2Config(**sizes, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(Path("models") / name)
        words.save_pretrained(Path("models") / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
