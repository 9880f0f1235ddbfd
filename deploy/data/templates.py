"""How a record becomes the text of a prompt, and the endless stream in which prompts are drawn."""

from __future__ import annotations

ALPACA_ALONE = (
    "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context."
    " Write a response that appropriately completes the request."
)


def alpaca(instruction: str, further: str = "") -> str:
    """The template of the paper (its appendix, after Stanford Alpaca); no input block where there is none."""
    head = ALPACA_WITH_INPUT if further else ALPACA_ALONE
    block = f"### Input:\n{further}\n\n" if further else ""
    return f"{head}\n\n### Instruction:\n{instruction}\n\n{block}### Response:\n"


def plain(instruction: str, further: str = "") -> str:
    """The instruction as it is, and its input on the next line."""
    return f"{instruction}\n{further}" if further else instruction
