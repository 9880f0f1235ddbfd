"""Names that people bring from elsewhere lead to settings that exist, with what differs in meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from minillm_ray.common.config.eval import EvalConfig
from minillm_ray.common.config.run import RunConfig
from minillm_ray.common.errors import ConfigError
from minillm_ray.deploy.config.loader import load_eval, load_run
from minillm_ray.deploy.config.other_names import SUGGESTIONS
from minillm_ray.deploy.config.suggestions import VALUES, suggest, suggest_value
from minillm_ray.deploy.pipeline.chain import load_chain
from pydantic import BaseModel


def section_of(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted setting, annotation) of every setting below `section`."""
    for name, field in section.model_fields.items():
        if below := section_of(field.annotation):
            yield from leaves(below, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.annotation


RUN = {name: annotation for name, annotation in leaves(RunConfig)}
EVALUATION = {name: annotation for name, annotation in leaves(EvalConfig)}


def exists(setting: str) -> bool:
    return any(key == setting or key.startswith(f"{setting}.") for key in [*RUN, *EVALUATION])


def literals(annotation: Any) -> set[object]:
    """Every value that a Literal within the annotation names."""
    parts = get_args(annotation)
    return set(parts) if get_origin(annotation) is Literal else set().union(*map(literals, parts))


def test_every_suggested_setting_exists():
    missing = {(entry.name, name) for entry in SUGGESTIONS for name in entry.settings if not exists(name)}
    assert missing == set()


def test_every_setting_that_a_note_names_exists():
    notes = [entry.note for entry in (*SUGGESTIONS, *VALUES) if entry.note]
    named = {name for note in notes for name in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", note)}
    assert {name for name in named - {"metrics.jsonl"} if not exists(name)} == set()


def test_no_name_stands_in_the_table_twice():
    names = [entry.name for entry in SUGGESTIONS]
    assert [name for name in names if names.count(name) > 1] == []
    assert [name for name in names if name != name.lower().replace("-", "_")] == []


def test_whatever_has_no_setting_says_why():
    assert [entry.name for entry in SUGGESTIONS if not entry.settings and not entry.note] == []


def test_no_name_of_the_table_is_a_setting_that_could_not_be_unknown():
    assert [e.name for e in SUGGESTIONS if e.name in RUN or e.name in EVALUATION] == []


@pytest.mark.parametrize("entry", SUGGESTIONS, ids=lambda entry: entry.name)
def test_every_name_of_the_table_is_answered(entry):
    trees = [tree for tree in (RUN, EVALUATION) if suggest(entry.name.split("."), tree)]
    assert trees, f"{entry.name} leads nowhere"


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        ("rollout.answers", "rollout.rollout_batch_size"),
        ("rollout.samples", "rollout.num_generations"),
        ("rollout.actors", "rollout.num_engines"),
        ("rollout.precision", "rollout.dtype"),
        ("rollout.max_sequences", "rollout.max_num_seqs"),
        ("rollout.cache_gib", "rollout.kv_cache_gib"),
        ("rollout.eager", "rollout.enforce_eager"),
        ("scoring.actors", "teacher_server.num_actors"),
        ("scoring.hidden_precision", "teacher_server.hidden_dtype"),
        ("learner.ranks", "learner.world_size"),
        ("learner.steps", "learner.max_steps"),
        ("learner.micro_batch", "learner.micro_batch_size"),
        ("learner.inner_epochs", "learner.num_iterations"),
        ("learner.optimizer.clip_norm", "learner.max_grad_norm"),
        ("objective.clip_range", "objective.epsilon"),
        ("validation.every", "eval_steps"),
        ("validation.samples", "validation.num_generations"),
        ("validation.heldout_samples", "validation.test_num_generations"),
        ("checkpoint_every", "save_steps"),
        ("keep_checkpoints", "save_total_limit"),
        ("out", "output_dir"),
        ("data.heldout", "data.test"),
        ("learning_rate", "learner.optimizer.lr"),
        ("learner.optimizer.learning_rate", "learner.optimizer.lr"),
        ("lr_scheduler_type", "learner.optimizer.schedule"),
        ("model_name_or_path", "student.path"),
        ("teacher_model_name_or_path", "teacher.path"),
        ("dataset_name", "data.train.path"),
        ("max_completion_length", "rollout.max_new_tokens"),
        ("teacher-mixed-alpha", "rollout.teacher_mix"),
        ("ppo-epochs", "learner.num_iterations"),
        ("reward-scaling", "objective.reward_scaling"),
        ("cliprange", "objective.epsilon"),
        ("single-step-reg", "objective.single_step"),
        ("lm-coef", "objective.lm_coef"),
        ("teacher-ckpt", "teacher.path"),
        ("train-iters", "learner.max_steps"),
        ("top-p", "rollout.top_p"),
        ("max_tokens", "rollout.max_new_tokens"),
        ("n", "rollout.num_generations"),
        ("enforce_eager", "rollout.enforce_eager"),
        ("output_dir_of_run.save_path", "output_dir"),
        ("--learning-rate", "learner.optimizer.lr"),
        ("MAX_COMPLETION_LENGTH", "rollout.max_new_tokens"),
        ("gradient_checkpointing", "learner.gradient_checkpointing"),
        ("weight-decay", "learner.optimizer.weight_decay"),
    ],
)
def test_a_name_from_elsewhere_leads_to_ours(typed: str, settings: str):
    assert suggest(typed.split("."), RUN) == f"did you mean {settings}?"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("per_device_train_batch_size", "over all ranks"),
        ("gradient_accumulation_steps", "learner.world_size x learner.micro_batch_size"),
        ("num_train_epochs", "optimiser steps"),
        ("max_prompt_length", "never cut"),
        ("beta", "objective.divergence=jsd"),
        ("lmbda", "objective.kind=kd"),
        ("gpu_memory_utilization", "GiB"),
        ("tensor_parallel_size", "one device"),
        ("length-norm", "LMOps normalises without its flag too"),
        ("rollout_batch_size", "OpenRLHF counts prompts"),
    ],
)
def test_what_means_something_else_here_says_so(typed: str, told: str):
    words = suggest([typed], RUN)
    assert words is not None
    assert words.startswith("did you mean ")
    assert told in words.partition("? (")[2]


@pytest.mark.parametrize("typed", ["report_to", "logging_steps", "use_vllm", "resume_from_checkpoint"])
def test_what_has_no_counterpart_says_what_happens_instead(typed: str):
    assert str(suggest([typed], RUN)).startswith("nothing here corresponds to it: ")


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        ("seeds", "num_seeds"),
        ("out", "output_dir"),
        ("engine.actors", "engine.num_engines"),
        ("scoring.actors", "teacher_server.num_actors"),
        ("max_tokens", "engine.max_new_tokens"),
        ("n", "num_seeds"),
        ("model_name_or_path", "models"),
        ("dataset_name", "data"),
        ("rollout.temperature", "engine.temperature"),
        ("data.template", "template"),
    ],
)
def test_an_evaluation_is_answered_with_its_own_settings(typed: str, settings: str):
    assert suggest(typed.split("."), EVALUATION) == f"did you mean {settings}?"


@pytest.mark.parametrize("typed", ["learning_rate", "ppo_epochs", "report_to", "save_strategy"])
def test_an_evaluation_is_not_led_to_settings_of_training(typed: str):
    assert suggest([typed], EVALUATION) is None


def test_a_note_in_an_evaluation_names_its_own_settings():
    words = str(suggest(["apply_chat_template"], EVALUATION))
    assert words == "did you mean template? (write template=chat)"


def test_several_settings_of_one_name_narrow_to_the_section_that_was_typed():
    assert suggest(["teacher_server", "precision"], RUN) == "did you mean teacher_server.dtype?"
    assert str(suggest(["learner", "bf16"], RUN)).startswith("did you mean learner.dtype? (")
    assert str(suggest(["precision"], RUN)).count(".dtype") == 3


def test_a_place_in_a_list_does_not_matter():
    assert suggest(["data", 0, "max_prompt_length"], EVALUATION) == (
        "did you mean max_prompt_tokens? (longer prompts are dropped, never cut)"
    )


@pytest.mark.parametrize("keys", [["rollout", "smaples"], ["colour"], [], [3]])
def test_a_name_that_nobody_uses_is_left_to_others(keys: list[str | int]):
    assert suggest(keys, RUN) is None


def test_every_suggested_value_is_one_that_some_setting_of_that_name_takes():
    for entry in VALUES:
        taken = [literals(a) for name, a in RUN.items() if name.split(".")[-1] == entry.setting]
        assert any(entry.value in values and entry.typed not in values for values in taken), entry


def test_an_old_value_is_answered_with_the_new_one():
    kinds = literals(RUN["objective.kind"])
    assert suggest_value(["objective", "kind"], "lm", kinds) == "did you mean sft?"
    assert suggest_value(["objective", "kind"], "opd", kinds) == (
        "did you mean minillm? (with objective.preset=opd)"
    )
    assert suggest_value(["objective", "kind"], "nothing like it", kinds) is None
    assert suggest_value(["objective", "kind"], 3, kinds) is None


def test_a_value_is_suggested_only_where_it_is_taken():
    assert suggest_value(["rollout", "dtype"], "fp16", literals(RUN["rollout.dtype"])) == (
        "did you mean float16?"
    )
    assert suggest_value(["learner", "dtype"], "fp16", literals(RUN["learner.dtype"])) is None
    hidden = literals(RUN["teacher_server.hidden_dtype"])
    assert suggest_value(["teacher_server", "hidden_dtype"], "BF16", hidden) == "did you mean bfloat16?"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rollout.answers=64", "rollout.answers is unknown; did you mean rollout.rollout_batch_size?"),
        ("scoring.actors=2", "scoring is unknown; did you mean teacher_server?"),
        ("checkpoint_every=5", "checkpoint_every is unknown; did you mean save_steps?"),
        ("num_train_epochs=3", "num_train_epochs is unknown; did you mean learner.max_steps?"),
        (
            "per_device_train_batch_size=8",
            "per_device_train_batch_size is unknown; did you mean learner.batch_size or"
            " learner.micro_batch_size?",
        ),
        (
            "max_completion_length=256",
            "max_completion_length is unknown; did you mean rollout.max_new_tokens",
        ),
        ("lmbda=0.5", "lmbda is unknown; did you mean objective.sampled_share"),
        ("beta=0.5", "beta is unknown; did you mean objective.jsd_beta"),
        (
            "objective.kind=lm",
            "invalid value lm for objective.kind; expected one of minillm, sft, kd; did you",
        ),
        ("rollout.dtype=bf16", "invalid value bf16 for rollout.dtype; expected one of float32, bfloat16,"),
    ],
)
def test_a_run_file_with_such_a_name_is_refused_with_the_name_here(tmp_path, override, says):
    (tmp_path / "run.yaml").write_text(
        "student: {path: a}\nteacher: {path: b}\ndata: {train: {path: train.jsonl}}\n"
    )
    with pytest.raises(ConfigError) as found:
        load_run(tmp_path / "run.yaml", [override])
    (fault,) = map(str, found.value.faults)
    assert fault.startswith(says)
    assert "did you mean" in fault


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["objective.divergence=rkl"], "objective.divergence", "did you mean reverse_kl?"),
        (["objective.divergence=forwrd_kl"], "objective.divergence", "did you mean forward_kl?"),
        (["metrics_sinks=[wandb]"], "metrics_sinks", "known are tensorboard, ray"),
    ],
)
def test_a_name_that_only_a_plugin_could_bring_is_refused_with_ours(tmp_path, overrides, key, says):
    (tmp_path / "run.yaml").write_text(
        "student: {path: a}\nteacher: {path: b}\ndata: {train: {path: t}}\nobjective: {kind: kd}\n"
    )
    with pytest.raises(ConfigError) as found:
        load_run(tmp_path / "run.yaml", overrides)
    (fault,) = found.value.faults
    assert (fault.key, fault.reason) == (key, "is neither ours nor a plugin's")
    assert fault.fix.startswith(says)


def test_an_evaluation_with_such_a_name_is_refused_with_the_name_there():
    with pytest.raises(ConfigError) as found:
        load_eval(None, ["seeds=2", "engine.eager=true"], {"models": ["a"], "data": ["b.jsonl"], "out": "c"})
    assert sorted(map(str, found.value.faults)) == [
        "engine.eager is unknown; did you mean engine.enforce_eager?",
        "out is unknown; did you mean output_dir?",
        "seeds is unknown; did you mean num_seeds?",
    ]


def test_a_chain_with_such_names_is_refused_phase_by_phase(tmp_path):
    base = "base: {student: {path: a}, teacher: {path: b}, data: {train: {path: t}}, scoring: {actors: 2}}\n"
    phases = "phases: {one: {do: train, learner: {steps: 3}}, two: {do: train}}\n"
    (tmp_path / "chain.yaml").write_text(f"output_dir: c\n{base}{phases}")
    with pytest.raises(ConfigError) as found:
        load_chain(tmp_path / "chain.yaml")
    known = {fault.key: (fault.scope, fault.fix) for fault in found.value.faults}
    assert known["learner.steps"] == (("phases.one",), "did you mean learner.max_steps?")
    assert known["scoring"][0] == ("phases.one", "phases.two")
    assert known["scoring"][1].startswith("did you mean teacher_server?")
