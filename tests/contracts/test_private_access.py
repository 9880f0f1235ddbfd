"""Only the compat modules reach into other libraries."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from minillm_ray.tests.contracts import private_access as rules

PARTS = ("common", "actors", "learner", "deploy")


def test_no_shipped_file_but_the_compat_modules_uses_what_another_library_keeps_to_itself(repo: Path):
    files = {
        path.relative_to(repo).as_posix(): path.read_text(encoding="utf-8")
        for part in PARTS
        for path in sorted((repo / part).rglob("*.py"))
    }
    assert set(files) >= rules.COMPAT
    assert [fault for path, source in files.items() for fault in rules.faults(path, source)] == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("from vllm.v1.outputs import SamplerOutput", "vllm.v1.outputs.SamplerOutput"),
        ("from vllm.distributed import parallel_state", "vllm.distributed.parallel_state"),
        ("from vllm import ir", "vllm.ir"),
        ("import vllm.model_executor.layers.linear", "vllm.model_executor.layers.linear"),
        ("from torch._inductor import config", "torch._inductor.config"),
        ("import ray._private.services", "ray._private.services"),
        ("import torch\ntorch.ops._C.rms_norm(x)", "torch.ops._C"),
        ("config._attn_implementation = 'eager'", "config._attn_implementation"),
        (
            "names = getattr(config, '_attn_implementation', None)",
            "getattr(config, '_attn_implementation', None)",
        ),
        ("actor.__ray_call__.remote(f)", "actor.__ray_call__"),
        ("engine.was_step_applied()", "engine.was_step_applied"),
        ("found = hasattr(layer, 'cpu_linear')", "hasattr(layer, 'cpu_linear')"),
        ("self.engine._optimizer.step()", "self.engine._optimizer"),
        ("from ..common import compat", "common.compat"),
        ("from ..common.compat import resolve", "common.compat"),
    ],
)
def test_a_use_of_internals_is_caught(line: str, what: str):
    found = rules.faults("learner/step.py", line)
    number = line.count("\n") + 1
    assert found == [f"learner/step.py:{number}: {what} belongs in a compat module"]
    assert rules.faults("actors/vllm_compat.py", line) == []


@pytest.mark.parametrize(
    "line",
    [
        "from vllm import EngineArgs",
        "from vllm.platforms import current_platform",
        "from .vllm_compat import SamplerOutput",
        "from torch.autograd.function import once_differentiable",
        "self._engine.step()",
        "cls._known.add(x)",
        "row._asdict()",
        "type(module).__name__",
        "getattr(config, 'eos_token_id', None)",
    ],
)
def test_what_a_library_offers_and_what_is_our_own_is_not_caught(line: str):
    assert rules.faults("learner/step.py", line) == []


def test_every_internal_name_that_is_looked_for_is_listed_by_a_compat_module():
    listed: set[str] = set()
    for path in rules.COMPAT:
        module = importlib.import_module("minillm_ray." + path.removesuffix(".py").replace("/", "."))
        for dotted in (*module.REQUIRED, *getattr(module, "OPTIONAL", ())):
            listed |= set(dotted.split("."))
    # The first is read off a model of ours, the second off an optimiser that has the flag that is listed.
    assert rules.INTERNAL_ATTRIBUTES - listed == {"secondary_weights", "grad_scale"}
