from functools import partial

import numpy as np
import pytest
import torch
from minillm_ray.actors.mixing import Mixture
from minillm_ray.common.errors import ModelError
from minillm_ray.common.types import SamplingSpec
from minillm_ray.tests.actors import packed
from minillm_ray.tests.actors.engines import Pair, nudge, publish, reference, reference_logits, some_prompts
from minillm_ray.tests.tiny_models import tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MIXED = SamplingSpec(max_tokens=16, teacher_mix=0.3, samples=2, temperature=0.8)
ALONE = SamplingSpec(max_tokens=16, samples=2)


def largest_gap(engine, models, spec):
    """How far the engine's log-probs are from those of two transformers forwards."""
    mixture = Mixture(teacher_mix=spec.teacher_mix, temperature=spec.temperature)
    prompts, gap = some_prompts(), 0.0
    for number, answer in enumerate(engine.call("generate", prompts, spec)):
        prompt = prompts[number // spec.samples].token_ids
        logits = [reference_logits(model, prompt, answer.answer_ids) for model in models]
        want = mixture.step(*logits[: 2 if spec.teacher_mix else 1])
        want = want.log_probs(torch.from_numpy(answer.answer_ids).long()).numpy()
        got = [answer.behaviour_logprobs, answer.student_logprobs, answer.mixed_teacher_logprobs]
        for column, values in enumerate(got):
            if values is not None:
                gap = max(gap, float(np.abs(want[:, column] - values).max()))
    return gap


@pytest.mark.parametrize(
    ("family", "tied", "padding"),
    [
        ("gpt2", True, 0),
        ("gpt2", False, 0),
        ("llama", True, 0),
        ("llama", False, 0),
        ("qwen2", True, 16),  # as Qwen2.5: the teacher's head has more spare rows than the student's
        ("qwen2", False, 16),
        ("opt", True, 0),
        ("mistral", False, 0),
    ],
)
def test_log_probs_equal_transformers_after_two_updates_in_a_row(engines, tmp_path, family, tied, padding):
    # Widths 64 and 96 make heads, and thus cache pages, of which neither divides the other.
    student = tiny_model(family, tmp_path / "student", seed=1, tied=tied, padding=padding // 2)
    teacher = tiny_model(
        family, tmp_path / "teacher", seed=2, tied=not tied, padding=padding, width=96, layers=3
    )
    engine = engines.use(Pair(student, teacher))
    models = reference(student), reference(teacher)
    assert largest_gap(engine, models, MIXED) < 1e-4
    checksum = engine.call("teacher_checksum")
    for version in (1, 2):
        nudge(models[0], seed=version)
        engine.load(*publish(models[0], version))
        assert largest_gap(engine, models, MIXED) < 1e-4
        assert largest_gap(engine, models, ALONE) < 1e-4
        assert engine.call("teacher_checksum") == checksum


def test_after_50_updates_the_teacher_is_bit_identical(engines, pair):
    engine = engines.use(pair)
    only_teacher = SamplingSpec(max_tokens=8, teacher_mix=1.0)
    before, checksum = engine.call("generate", some_prompts(), only_teacher), engine.call("teacher_checksum")
    student = reference(pair.student)
    for version in range(1, 51):
        nudge(student, seed=version, scale=0.01)
        engine.load(*publish(student, version))
    after = engine.call("generate", some_prompts(), only_teacher)
    assert engine.call("teacher_checksum") == checksum
    for old, new in zip(before, after, strict=True):
        assert old.answer_ids.tolist() == new.answer_ids.tolist()
        assert old.mixed_teacher_logprobs.tobytes() == new.mixed_teacher_logprobs.tobytes()
        assert np.abs(old.student_logprobs - new.student_logprobs).max() > 0.01


def test_a_changed_teacher_has_another_checksum(engines, pair, tmp_path):
    other = tiny_model("llama", tmp_path / "t", seed=2, width=96, layers=3, tied=False, padding=16)
    model = reference(other)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 5] += 1e-3
    model.save_pretrained(other)
    checksum = engines.use(pair).call("teacher_checksum")
    assert engines.use(Pair(pair.student, other)).call("teacher_checksum") != checksum


def test_weights_in_bfloat16_arrive_as_they_were_sent(engines, pair):
    engine = engines.use(pair)
    models = reference(pair.student), reference(pair.teacher)
    nudge(models[0], seed=1)
    engine.load(*publish(models[0], 1, dtype="bfloat16"))
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.copy_(parameter.bfloat16())
    assert largest_gap(engine, models, MIXED) < 1e-4


def test_a_damaged_or_foreign_update_is_refused_and_the_old_weights_stay(engines, pair, tmp_path):
    engine = engines.use(pair)
    models = reference(pair.student), reference(pair.teacher)
    changed = reference(pair.student)
    nudge(changed, seed=1)

    manifest, buckets = publish(changed, 1)
    buckets[1][0].view(np.uint32).flat[25] ^= 1
    with pytest.raises(ModelError, match="bucket 1 of weights 1 is damaged"):
        engine.load(manifest, buckets)
    manifest, buckets = publish(changed, 1)
    buckets[0][2] = buckets[0][2][:-1]
    with pytest.raises(ModelError, match="bucket 0 of weights 1 holds other arrays than its manifest says"):
        engine.load(manifest, buckets)
    wider = reference(tiny_model("llama", tmp_path / "wide", width=96))
    with pytest.raises(ModelError, match="do not fit the student in this engine"):
        engine.load(*publish(wider, 1))
    deeper = reference(tiny_model("llama", tmp_path / "deep", layers=3))
    with pytest.raises(ModelError, match=r"model\.layers\.2\..* and none in the student"):
        engine.load(*publish(deeper, 1))

    assert largest_gap(engine, models, MIXED) < 1e-4
    engine.load(*publish(changed, 1))
    assert largest_gap(engine, (changed, models[1]), MIXED) < 1e-4


def test_old_weights_are_gone_before_the_first_new_one_is_packed(engines, pair):
    engine = engines.use(pair)
    changed = reference(pair.student)
    nudge(changed, seed=1)
    engine.run(packed.watch)
    engine.load(*publish(changed, 1))
    before, alive = engine.run(packed.watched)
    assert before > 4
    assert alive == [0] * before


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_and_a_head_are_copied_once_to_where_they_lie(engines, tmp_path, tied):
    student = tiny_model("llama", tmp_path / "student", tied=tied, padding=16)
    engine = engines.use(Pair(student, None))
    copies = engine.run(partial(packed.copies_to_vocabulary_layers, student))
    assert copies == [0] if tied else sorted(copies) == [0, 1]


@pytest.mark.parametrize(("student_tied", "teacher_tied"), [(True, False), (False, True), (True, True)])
def test_a_tied_output_layer_packs_nothing_of_its_own(engines, tmp_path, student_tied, teacher_tied):
    student = tiny_model("llama", tmp_path / "student", seed=1, tied=student_tied)
    teacher = tiny_model("llama", tmp_path / "teacher", seed=2, tied=teacher_tied, width=96)
    engine = engines.use(Pair(student, teacher))
    assert engine.run(packed.tied_layers_that_hold_their_own) == 0
    model = reference(student)
    nudge(model, seed=1)
    engine.load(*publish(model, 1))
    assert engine.run(packed.tied_layers_that_hold_their_own) == 0


def test_a_student_that_ties_its_output_layer_in_an_unknown_way_is_refused(engines, tmp_path):
    tied = tiny_model("llama", tmp_path / "student", seed=1, tied=True)
    refusal = engines.use(Pair(tied, None)).run(packed.an_unknown_tie)
    assert "1 heads, 0 of them with an embedding's weights" in refusal


def test_a_student_that_vllm_runs_by_transformers_own_class_is_swapped_for_another(engines, tmp_path):
    # vLLM changes that class for its whole process, where the other student's weights are read too.
    one, other = (tiny_model("smollm3", tmp_path / str(seed), seed=seed) for seed in (1, 2))
    teacher = tiny_model("llama", tmp_path / "teacher", width=96)
    engine = engines.use(Pair(one, teacher))
    assert largest_gap(engine, (reference(one), reference(teacher)), MIXED) < 1e-4
    engine.swap(other)
    assert largest_gap(engine, (reference(other), reference(teacher)), MIXED) < 1e-4


def test_a_teacher_with_a_head_that_vllm_would_not_read_is_refused(engines, pair, tmp_path):
    # vLLM's OLMoE knows no tied layers, and would answer with what happens to lie in memory.
    settings = {"num_experts": 4, "num_experts_per_tok": 2}
    tied = tiny_model("olmoe", tmp_path / "tied", tied=True, settings=settings)
    with pytest.raises(ModelError, match="OlmoeForCausalLM ties its output layer in a way that is not known"):
        engines.use(Pair(pair.student, tied))


@pytest.mark.parametrize(
    ("role", "family", "says"),
    [("teacher", "codegen", r"teacher\.path = .* cannot be run by vLLM: ValueError: Model architectures"),
     ("student", "mamba", r"vLLM cannot run .*: AssertionError: assert mamba_block_size")],
)  # fmt: skip
def test_a_family_that_no_engine_takes_is_refused_with_its_name_and_vllms_reason(
    engines, pair, tmp_path, role, family, says
):
    settings = {"n_embd": 64, "n_head": 4, "n_layer": 1} if family == "codegen" else {}
    made = tiny_model(family, tmp_path / "made", settings=settings)
    with pytest.raises(ModelError, match=says):
        engines.use(Pair(made, pair.teacher) if role == "student" else Pair(pair.student, made))
