import subprocess
import sys
from importlib.metadata import entry_points

import pytest


def test_vllm_finds_the_mixture_model_by_its_entry_point():
    found = [e for e in entry_points(group="vllm.general_plugins") if e.name == "minillm_ray"]
    assert {e.value for e in found} == {"minillm_ray.actors.mixture_model:register"}


def test_naming_the_model_loads_no_vllm():
    code = "import sys, minillm_ray.actors.mixture_model; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_rollout_actor_is_defined_without_torch_so_that_its_process_can_still_set_threads():
    code = "import sys, minillm_ray.actors.workers; assert not {'torch', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.vllm
def test_registering_twice_is_harmless():
    code = """
from minillm_ray.actors.vllm_engine import prepare_environment
prepare_environment(1)
from minillm_ray.actors.mixture_model import ARCHITECTURE, register
register(), register()
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.model_executor.models import ModelRegistry
assert ARCHITECTURE in ModelRegistry.get_supported_archs()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
