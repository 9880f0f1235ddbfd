"""Load a model's weights from local memory into a running vLLM engine, by vLLM's own layerwise reload."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
args = parser.parse_args()

os.environ["OMP_NUM_THREADS"] = str(args.threads)
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from safetensors.torch import load_file  # noqa: E402
from vllm import LLM  # noqa: E402
from vllm.model_executor.model_loader.reload import (  # noqa: E402
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

llm = LLM(str(args.model), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=8, seed=0)
runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
weights = {}
for file in sorted(args.model.glob("*.safetensors")):
    weights |= {name: tensor.float() for name, tensor in load_file(file).items()}
num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
took = []
for _ in range(args.rounds + 1):
    began = time.perf_counter()
    initialize_layerwise_reload(runner.model)
    runner.model.load_weights(iter(weights.items()))
    finalize_layerwise_reload(runner.model, runner.model_config)
    took.append(time.perf_counter() - began)
print(json.dumps({"seconds": statistics.median(took[1:]), "bytes": num_bytes, "all": took[1:]}))
