"""What a plain forward pass of transformers says of given answers: the referee of the parity check.

One passage at a time, eager attention, nothing packed, shared or replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..common.config.base import Dtype
from ..common.types import Floats, Passage


def read_plainly(
    path: str, revision: str | None, dtype: Dtype, vocabulary: int, passages: Sequence[Passage]
) -> list[Floats]:
    """log-probs [T] of each answer at temperature 1 over the first `vocabulary` words, in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
    ).eval()
    if torch.cuda.is_available():
        torch.nn.Module.cuda(model)
    found: list[Floats] = []
    with torch.inference_mode():
        for passage in passages:
            ids = torch.tensor(
                [[*passage.prompt_ids.tolist(), *passage.answer_ids.tolist()]], device=model.device
            )
            answer = ids[0, len(passage.prompt_ids) :]
            logits = model(ids, use_cache=False).logits[0, len(passage.prompt_ids) - 1 : -1, :vocabulary]
            logprobs = logits.float().log_softmax(-1).gather(1, answer[:, None])[:, 0]
            found.append(logprobs.cpu().numpy())
    return found
