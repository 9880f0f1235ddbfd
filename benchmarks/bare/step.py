"""An optimiser step on the exact reverse KL in plain torch: whole logits, autograd, AdamW."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("student")
parser.add_argument("teacher")
parser.add_argument("--answers", type=int, default=16)
parser.add_argument("--tokens", type=int, default=48)
parser.add_argument("--prompt-tokens", type=int, default=36)
parser.add_argument("--micro-batch", type=int, default=8)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(0)
student = AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32).train()
teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32)
teacher_head, width = teacher.lm_head.weight.detach().clone(), teacher.config.hidden_size
del teacher
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
words, took = student.config.vocab_size, []
for _ in range(args.rounds + 1):
    ids = torch.randint(words, (args.answers, args.prompt_tokens + args.tokens))
    teacher_hidden = torch.randn(args.answers, args.tokens, width)
    began = time.perf_counter()
    for part, theirs in zip(ids.split(args.micro_batch), teacher_hidden.split(args.micro_batch), strict=True):
        hidden = student.model(part[:, :-1]).last_hidden_state[:, args.prompt_tokens - 1 :]
        log_q = student.lm_head(hidden).log_softmax(-1)
        with torch.no_grad():
            log_p = (theirs @ teacher_head.T).log_softmax(-1)
        loss = (log_q.exp() * (log_q - log_p)).sum() / (args.answers * args.tokens)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    took.append(time.perf_counter() - began)
seconds = statistics.median(took[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(
    json.dumps(
        {
            "seconds": seconds,
            "tokens_per_s": args.answers * args.tokens / seconds,
            "peak_bytes": peak,
            "all": took[1:],
        }
    )
)
