"""A chain with real engines: a model answers, and another learns from the answers as they lie."""

from __future__ import annotations

import json

import pytest
import yaml
from minillm_ray.deploy.pipeline.chain import load_chain
from minillm_ray.deploy.pipeline.runner import run_chain
from minillm_ray.tests.tiny_runs import tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]


def test_what_is_left_is_answered_whole_parts_stay_and_a_student_learns_from_all(
    ray_cluster, tiny_pair, questions, tmp_path
):
    teacher, student = tiny_pair
    run = tiny_run(
        teacher, student, questions, tmp_path / "run",
        data={"train": {"path": str(questions), "limit": 7}},
        rollout={"num_generations": 2, "chunk": 3},
        learner={"world_size": 1, "max_steps": 1},
    )  # fmt: skip
    base = json.loads(run.model_dump_json(exclude_unset=True, exclude={"output_dir"}))
    learned = {
        "do": "sft",
        "data": {"train": {"path": "${output_dir}/answers/answers.jsonl"}},
        "rollout": {"max_new_tokens": 48, "num_generations": 1},
    }
    chain = {"output_dir": str(tmp_path / "chain"), "base": base}
    chain["phases"] = {"answers": {"do": "generate", "keep_cut": True}, "seqkd": learned}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(chain, sort_keys=False))
    before = [
        {"instruction": "?", "input": "", "output": "!", "prompt_id": "train/2", "sample": n, "tokens": 2,
         "finish": "stop"}
        for n in range(2)
    ]  # fmt: skip
    out = tmp_path / "chain" / "answers"
    (out / "parts").mkdir(parents=True)
    part = out / "parts" / "part-0000002-0000002.jsonl"
    part.write_text("".join(json.dumps(row) + "\n" for row in before))

    answers, seqkd = run_chain(load_chain(tmp_path / "chain.yaml"))
    rows = [json.loads(line) for line in answers.result.file.open()]
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [
        (f"train/{number}", sample) for number in range(7) for sample in range(2)
    ]
    assert rows[4:6] == before
    assert rows[0]["instruction"] == rows[1]["instruction"] == "say red red"
    assert rows[0]["output"] != rows[1]["output"]
    assert sorted(path.name for path in (out / "parts").glob("part-*")) == [
        "part-0000000-0000001.jsonl",
        "part-0000002-0000002.jsonl",
        "part-0000003-0000005.jsonl",
        "part-0000006-0000006.jsonl",
    ]
    assert seqkd.result.steps == 1
    assert set(seqkd.result.memory) == {"driver", "writer", "learner-0"}
    assert (tmp_path / "chain" / "seqkd" / "best" / "model.safetensors").exists()
    assert [done.result for done in run_chain(load_chain(tmp_path / "chain.yaml"))] == [None, None]


def test_fine_tuning_distillation_and_evaluation_run_from_one_file(
    ray_cluster, tiny_pair, questions, tmp_path
):
    teacher, student = tiny_pair
    run = tiny_run(
        teacher,
        student,
        questions,
        tmp_path / "run",
        learner={"world_size": 1, "max_steps": 1, "num_iterations": 1},
    )
    base = json.loads(run.model_dump_json(exclude_unset=True, exclude={"output_dir"}))
    phases = {
        "sft": {"do": "sft"},
        "minillm": {"do": "train", "student": {"path": "${output_dir}/sft/last"}},
        "eval": {
            "do": "eval",
            "models": ["${output_dir}/sft/last", "${output_dir}/minillm/last"],
            "data": [{"path": str(questions), "limit": 6}],
            "metrics": ["rouge_l", "reverse_kl"],
            "engine": {"num_engines": 2, "chunk": 3},
            "num_seeds": 1,
        },
    }
    chain = {"output_dir": str(tmp_path / "chain"), "base": base, "phases": phases}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(chain, sort_keys=False))

    *_, evaluated = run_chain(load_chain(tmp_path / "chain.yaml"))
    rows = json.loads((tmp_path / "chain" / "eval" / "results.json").read_text())
    means = {
        (row["model"], row["metric"]): row for row in rows if (row["seed"], row["bucket"]) == (None, "all")
    }
    assert set(means) == {(m, k) for m in ("sft/last", "minillm/last") for k in ("rouge_l", "reverse_kl")}
    assert all(row["n"] == 6 and row["value"] is not None for row in means.values())
    assert rows == evaluated.result.rows
    assert means["sft/last", "reverse_kl"]["value"] != means["minillm/last", "reverse_kl"]["value"]
    assert [done.result for done in run_chain(load_chain(tmp_path / "chain.yaml"))] == [None, None, None]
