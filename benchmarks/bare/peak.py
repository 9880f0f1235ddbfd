"""This machine's arithmetic limit: the best float32 matrix product of several shapes, in GFLOP/s."""

from __future__ import annotations

import argparse
import json
import time

import torch

SHAPES = ((4096, 4096, 4096), (2048, 576, 49152), (2048, 49152, 576))
"""(rows, inner, columns): a large square, and the output layer of a small model forward and backward."""

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
args = parser.parse_args()
torch.set_num_threads(args.threads)
speeds = []
for rows, inner, columns in SHAPES:
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    out = torch.empty(rows, columns)
    torch.mm(a, b, out=out)
    took = []
    for _ in range(args.rounds):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        took.append(time.perf_counter() - began)
    speeds.append(2e-9 * rows * inner * columns / min(took))
print(json.dumps({"gflops": max(speeds), "by_shape": speeds}))
