"""Answers are drawn by real engines, gone on with after a stop, and learned from at once."""

from __future__ import annotations

import json

import pytest
from minillm_ray.deploy.data import load_passages
from minillm_ray.deploy.generate import generate, load_generation
from minillm_ray.deploy.run_file import load_run, save_resolved
from minillm_ray.tests.tiny_runs import tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.vllm]


def test_what_is_left_is_answered_whole_parts_stay_and_all_can_be_learned_from(
    ray_cluster, tiny_pair, questions, tmp_path
):
    teacher, student = tiny_pair
    run = tiny_run(teacher, student, questions, tmp_path / "run", rollout={"samples": 2, "chunk": 3})
    file, out = save_resolved(run, tmp_path), tmp_path / "answers"
    asked = load_generation(file, ["data.train.limit=7"], out=out, keep_cut=True)
    before = [
        {
            "instruction": "?",
            "output": "!",
            "prompt_id": "train/2",
            "sample": n,
            "tokens": 2,
            "finish": "stop",
        }
        for n in range(2)
    ]
    part = out / "parts" / "part-0000002-0000002.jsonl"
    part.parent.mkdir(parents=True)
    part.write_text("".join(json.dumps(row) + "\n" for row in before))

    made = generate(asked)
    rows = [json.loads(line) for line in made.file.open()]
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
    learned = load_run(
        file, [f"data.train.path={made.file}", "objective.kind=lm", "rollout.max_new_tokens=32"]
    )
    passages = load_passages(learned, "train")
    assert len(passages) + len(passages.dropped) == 14
    assert len(passages) > 7
