"""Sample answers with vLLM and nothing else: one request per answer, end tokens ignored."""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--answers", type=int, default=16)
parser.add_argument("--tokens", type=int, default=48)
parser.add_argument("--prompt-tokens", type=int, default=36)
parser.add_argument("--words", type=int, default=49152)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()

os.environ["OMP_NUM_THREADS"] = str(args.threads)
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams  # noqa: E402 (its settings are read at import)
from vllm.inputs import TokensPrompt  # noqa: E402

llm = LLM(
    args.model,
    dtype="float32",
    enforce_eager=True,
    max_model_len=args.prompt_tokens + args.tokens,
    max_num_seqs=args.answers,
    seed=0,
)
params = SamplingParams(
    temperature=1.0, max_tokens=args.tokens, ignore_eos=True, detokenize=False, logprobs=0
)
took = []
for number in range(args.rounds + 1):
    draw = random.Random(number)
    prompts = [
        TokensPrompt(prompt_token_ids=[draw.randrange(args.words) for _ in range(args.prompt_tokens)])
        for _ in range(args.answers)
    ]
    began = time.perf_counter()
    found = llm.generate(prompts, params, use_tqdm=False)
    took.append(time.perf_counter() - began)
    assert all(len(one.outputs[0].token_ids) == args.tokens for one in found)
seconds = statistics.median(took[1:])
print(json.dumps({"seconds": seconds, "tokens_per_s": args.answers * args.tokens / seconds, "all": took[1:]}))
