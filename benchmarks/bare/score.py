"""Let a teacher read prompts and answers of equal length: the inputs of its output layer, and log-probs."""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--answers", type=int, default=16)
parser.add_argument("--tokens", type=int, default=48)
parser.add_argument("--prompt-tokens", type=int, default=36)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
words = model.config.vocab_size
took = []
for _ in range(args.rounds + 1):
    ids = torch.randint(words, (args.answers, args.prompt_tokens + args.tokens))
    began = time.perf_counter()
    with torch.inference_mode():
        for part in ids.split(args.batch):
            hidden = model.model(part[:, :-1]).last_hidden_state[:, args.prompt_tokens - 1 :]
            logits = model.lm_head(hidden)
            answers = part[:, args.prompt_tokens :, None]
            log_p = logits.gather(2, answers)[..., 0] - logits.logsumexp(-1)
            assert log_p.shape == (len(part), args.tokens)
    took.append(time.perf_counter() - began)
seconds = statistics.median(took[1:])
print(json.dumps({"seconds": seconds, "tokens_per_s": args.answers * args.tokens / seconds, "all": took[1:]}))
