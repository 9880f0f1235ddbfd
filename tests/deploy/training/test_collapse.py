import pytest
from minillm_ray.deploy.training.collapse import symptoms

START = {
    "rollout/answer_tokens": 40.0,
    "rollout/distinct_4": 0.9,
    "rollout/eos_rate": 0.8,
    "rollout/repetition": 0.05,
}


def test_a_healthy_run_is_left_in_peace():
    assert symptoms(START | {"learner/engine_gap": 1e-5, "learner/clip_fraction": 0.1}, START) == []


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("rollout/answer_tokens", 5.0, "objective.length_norm"),
        ("rollout/distinct_4", 0.1, "rollout.teacher_mix"),
        ("rollout/eos_rate", 0.1, "rollout.max_new_tokens"),
        ("rollout/repetition", 0.6, "rollout.teacher_mix"),
        ("learner/engine_gap", 0.5, "rollout.dtype"),
        ("learner/clip_fraction", 0.8, "learner.num_iterations"),
    ],
)
def test_each_sign_of_collapse_names_a_setting_to_try(name, value, setting):
    [symptom] = symptoms(START | {name: value}, START)
    assert setting in str(symptom)
