"""What a set is fed with: no two of its answers share their random numbers."""

import numpy as np
from minillm_ray.common.types import Prompt
from minillm_ray.deploy.data.streams import offset_samples


def test_a_prompt_that_a_set_holds_again_is_asked_for_other_answers():
    names = ["a", "b", "a", "a", "b"]
    prompts = [Prompt(id=name, token_ids=np.array([1], np.int32)) for name in names]
    found = offset_samples(prompts, samples=3)
    assert [(p.id, p.first_sample) for p in found] == [("a", 0), ("b", 0), ("a", 3), ("a", 6), ("b", 3)]
