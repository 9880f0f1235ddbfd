"""Memory and time of the fused full-vocabulary loss against the plain way, in a fresh process each.

    python benchmarks/fused_head.py [--tokens 4096] [--words 49152] [--output results/fused_head.json]

Plain: both networks' logits for all positions, log-softmax, exact reverse KL and autograd. Both ways compute
the paper's loss with its gradient in the student's hidden states and head. Memory is the rise of the
process's high-water resident size over what is resident before the first step (weights and hidden states),
the head's gradient included. Time is the best of the steps after the first; `cpu_seconds`, of all threads
together, says how far a busy machine slowed either.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from minillm_ray.common.config.objective import ObjectiveConfig
from minillm_ray.common.heads import Head
from minillm_ray.common.process import usable_cores
from minillm_ray.learner.divergences import REVERSE_KL
from minillm_ray.learner.fused_loss import fused_loss
from minillm_ray.learner.objective import TokenConstants, answer_loss
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "fused_head.json"
MEMORY_LIMIT, TIME_LIMIT = 1 / 8, 1.1
"""What the fused way may take of the plain way's."""


class Problem:
    """Random hidden states, heads and constants, the same in every process."""

    def __init__(self, tokens: int, words: int, width: int):
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(words, width) * 0.05)
        self.teacher_weight = torch.randn(words, width) * 0.05
        self.hidden = torch.randn(tokens, width, requires_grad=True)
        self.teacher_hidden = self.hidden.detach() + 0.5 * torch.randn(tokens, width)
        self.ids = torch.randint(0, words, (tokens,))
        logprobs = torch.randn(tokens) - 8
        self.constants = TokenConstants(
            advantage=torch.randn(tokens),
            behaviour_logprobs=logprobs,
            student_logprobs=logprobs,
            prefix_weight=torch.ones(tokens),
        )
        self.loss = answer_loss(ObjectiveConfig(clip="none"), self.constants)

    def plain(self) -> Tensor:
        """All logits at once, and autograd."""
        log_q = torch.log_softmax(self.hidden @ self.weight.T, -1)
        log_p = torch.log_softmax(self.teacher_hidden @ self.teacher_weight.T, -1)
        kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        logprob = log_q.gather(1, self.ids[:, None])[:, 0]
        return self.loss(kl, logprob, slice(None))[0].sum() / len(self.ids)

    def fused(self) -> Tensor:
        """The loss that the learner runs."""
        words = len(self.weight)
        return fused_loss(
            self.hidden,
            Head(weight=self.weight, vocabulary=words),
            self.ids,
            self.loss,
            divisor=len(self.ids),
            teacher_hidden=self.teacher_hidden,
            teacher=Head(weight=self.teacher_weight, vocabulary=words),
            divergence=REVERSE_KL,
        ).loss


def high_water_bytes() -> int:
    """The largest resident size that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """The resident size of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_one(way: str, tokens: int, words: int, width: int, steps: int, threads: int) -> dict[str, float]:
    """One way in this process: rise in bytes, seconds, loss and gradient norms."""
    torch.set_num_threads(threads)
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # the libraries' own memory is not the loss's
    problem = Problem(tokens, words, width)
    step = problem.plain if way == "plain" else problem.fused
    before, seconds, cpu_seconds, loss = resident_bytes(), [], [], torch.zeros(())
    for _ in range(steps):
        problem.hidden.grad = problem.weight.grad = None
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = step()
        loss.backward()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    assert problem.hidden.grad is not None
    assert problem.weight.grad is not None
    return {
        "rise_bytes": high_water_bytes() - before,
        "seconds": min(seconds[1:]),
        "cpu_seconds": min(cpu_seconds[1:]),
        "loss": loss.item(),
        "hidden_gradient_norm": problem.hidden.grad.norm().item(),
        "head_gradient_norm": problem.weight.grad.norm().item(),
    }


def hardware() -> dict[str, object]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": usable_cores(),
        "avx512": any("avx512f" in line for line in lines if line.startswith("flags")),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> int:
    """Both ways, one after the other in processes of their own; 0 if the fused way keeps its limits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--words", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--way", choices=["plain", "fused"], help="run one way here; used by the benchmark")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    size = {"tokens": args.tokens, "words": args.words, "width": args.width}
    if args.way:
        print(json.dumps(run_one(args.way, **size, steps=args.steps, threads=args.threads)))
        return 0
    ways = {}
    for way in ("plain", "fused"):
        command = [sys.executable, __file__, "--way", way]
        command += ["--steps", str(args.steps), "--threads", str(args.threads)]
        command += [part for name, value in size.items() for part in (f"--{name}", str(value))]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        ways[way] = json.loads(run.stdout)
    memory = ways["fused"]["rise_bytes"] / ways["plain"]["rise_bytes"]
    seconds = ways["fused"]["seconds"] / ways["plain"]["seconds"]
    report = {
        "what": "paper's loss and its gradient in student hidden states and head, float32",
        "size": size,
        "threads": args.threads,
        **ways,
        "memory_ratio": round(memory, 4),
        "time_ratio": round(seconds, 4),
        "within_limits": memory <= MEMORY_LIMIT and seconds <= TIME_LIMIT,
        "hardware": hardware(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text + "\n")
    return 0 if report["within_limits"] else 1


if __name__ == "__main__":
    sys.exit(main())
