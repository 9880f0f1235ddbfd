"""Two models and a teacher, evaluated on Ray with real engines: the rows are what one would find by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from minillm_ray.deploy.api import evaluate
from minillm_ray.deploy.config.loader import load_eval
from minillm_ray.deploy.evaluation.buckets import ALL, LENGTH_BUCKETS
from minillm_ray.deploy.runtime.workers import start_eval_workers
from minillm_ray.tests.tiny_models import tiny_model
from rouge_score import rouge_scorer
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]

CLUSTER = [
    "cluster.rollout_cpus=0.1",
    "cluster.teacher_cpus=0.1",
    "cluster.writer_cpus=0.1",
    "verify.referee=false",  # test_verify.py has one
]
ENGINE = [
    "max_prompt_tokens=64",
    "engine.max_new_tokens=8",
    "engine.max_num_seqs=16",
    "engine.kv_cache_gib=0.02",
    "num_seeds=2",
]
LABELS = ["red", "blue"]
SAID = ["c", "e", "q", "spare1", "k", "t", "x", "spare21", "y", "j"]
"""What random models are likely to say now and then."""
WORDS = (2, 3, 4, 7, 8, 9)
"""Words of each reference: no answer has eleven or more."""


@dataclass(frozen=True)
class Found:
    folder: Path
    models: tuple[Path, Path]
    """(teacher, student); both are evaluated."""
    rows: pd.DataFrame
    read: dict[str, str]
    """File name -> text, of results.json and comparisons.json."""

    def one(self, **wanted: Any) -> Any:
        """The only row with these values; seed=None is the mean."""
        rows: Any = self.rows
        for key, value in ({"bucket": ALL, "seed": None} | wanted).items():
            rows = rows[rows[key].isna()] if value is None else rows[rows[key] == value]
        assert len(rows) == 1, rows
        return rows.iloc[0]


def settings(
    models: tuple[Path, ...], data: list[Path], out: Path, *more: str, teacher: Path | None = None
) -> Any:
    flags = {
        "models": [str(m) for m in models], "teacher": str(teacher or models[0]),
        "data": [str(d) for d in data], "output_dir": out,
    }  # fmt: skip
    return load_eval(None, [*CLUSTER, *ENGINE, "max_prompt_tokens=64", "num_seeds=2", *more], flags)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    """Six questions, and six to be answered by one of two label words."""
    folder = tmp_path_factory.mktemp("eval-data")
    asked, labelled = folder / "asked.jsonl", folder / "colours.jsonl"
    asked.write_text(
        "".join(json.dumps({"instruction": f"say it {i}", "output": " ".join(SAID[:words])}) + "\n"
                for i, words in enumerate(WORDS))
    )  # fmt: skip
    labelled.write_text(
        "".join(json.dumps({"instruction": f"which {i}", "output": LABELS[i % 2], "choices": LABELS}) + "\n"
                for i in range(6))
    )  # fmt: skip
    return [asked, labelled]


@pytest.fixture(scope="module")
def found(ray_cluster, tiny_pair, data, tmp_path_factory) -> Found:
    out = tmp_path_factory.mktemp("eval") / "out"
    evaluate(settings(tiny_pair, data, out))
    read = {name: (out / name).read_text() for name in ("results.json", "comparisons.json")}
    return Found(out, tiny_pair, pd.DataFrame(json.loads(read["results.json"])), read)


def answers(found: Found, model: Path) -> pd.DataFrame:
    files = sorted((found.folder / "answers").rglob("seed-*.parquet"))
    mine = [f for f in files if f.parent.name == "asked" and model.name in f.parent.parent.name]
    assert len(mine) == 2
    return pd.concat(pd.read_parquet(f) for f in mine)


def test_a_row_says_what_was_measured_of_whom_and_parquet_holds_the_same(found):
    keys = ["model", "data", "metric", "bucket", "seed", "value", "low", "high", "n"]
    assert list(found.rows.columns) == keys
    assert set(found.rows["model"]) == {str(m) for m in found.models}
    assert set(found.rows["data"]) == {"asked", "colours"}
    same = pd.read_parquet(found.folder / "results.parquet")
    pd.testing.assert_frame_equal(same, found.rows, check_dtype=False)


def test_rouge_l_is_what_rouge_score_gives_by_hand_at_every_length(found):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    rows = answers(found, found.models[1])
    rows["by_hand"] = [
        100 * scorer.score(refs[0], text)["rougeL"].fmeasure
        for refs, text in zip(rows["references"], rows["answer"], strict=True)
    ]
    assert max(rows["by_hand"].tolist()) > 0
    rows["words"] = [len(refs[0].split()) for refs in rows["references"]]
    for bucket, (low, high) in ({ALL: (0, None)} | LENGTH_BUCKETS).items():
        inside = rows[(rows["words"] >= low) & (rows["words"] <= (high or 10**6))]
        row = found.one(model=str(found.models[1]), data="asked", metric="rouge_l", bucket=bucket)
        assert row["n"] == len(inside)
        assert row["value"] == pytest.approx(inside["by_hand"].mean(), nan_ok=True)
        if bucket == "[11,inf)":
            assert np.isnan(row["value"])
            continue
        for seed in (10, 20):
            mine = inside[inside["seed"] == seed]["by_hand"].mean()
            at_seed = found.one(
                model=str(found.models[1]), data="asked", metric="rouge_l", bucket=bucket, seed=seed
            )
            assert at_seed["value"] == pytest.approx(mine)


@torch.inference_mode()
def divergences(found: Found, whose: Path) -> list[np.ndarray]:
    """[2, T] of each answer of a model: reverse and forward KL before each of its tokens."""
    teacher, student = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in found.models)
    tokenizer = AutoTokenizer.from_pretrained(found.models[1])
    rows, kls = answers(found, whose), []
    for question, ids in zip(rows["prompt"], rows["answer_ids"], strict=True):
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        whole = torch.tensor([[*prompt, *ids]])
        log_q, log_p = (m(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (student, teacher))
        reverse, forward = (log_q.exp() * (log_q - log_p)).sum(-1), (log_p.exp() * (log_p - log_q)).sum(-1)
        kls.append(torch.stack([reverse, forward]).numpy())
    return kls


def test_divergences_are_those_of_two_plain_forward_passes(found):
    whole = np.concatenate(divergences(found, found.models[1]), axis=1)
    for metric, value in zip(("reverse_kl", "forward_kl"), whole.mean(axis=1), strict=True):
        row = found.one(model=str(found.models[1]), data="asked", metric=metric)
        # Each seed is a mean over its own tokens; both seeds have about as many.
        assert row["value"] == pytest.approx(value, rel=2e-2)


def test_exposure_bias_at_every_length_is_summed_by_hand_over_both_models_answers(found):
    curves = []
    for model in found.models:
        forward = [kl[1] for kl in divergences(found, model)]
        lengths = range(max(map(len, forward)))
        curves.append(np.cumsum([np.mean([kl[t] for kl in forward if len(kl) > t]) for t in lengths]))
    ideal, accumulated = curves
    shown = min(map(len, curves))
    assert shown > 4
    for length in range(1, shown + 1):
        value, fair = accumulated[length - 1], ideal[length - 1]
        for metric, by_hand in (
            ("accumulated_kl", value),
            ("per_step_kl", fair / length),
            ("ex_acc_err", 100 * (value - fair) / fair),
        ):
            row = found.one(model=str(found.models[1]), data="asked", metric=metric, bucket=str(length))
            assert row["value"] == pytest.approx(by_hand, rel=1e-3, abs=1e-2), (metric, length)


@torch.inference_mode()
def test_label_words_are_chosen_by_their_probability(found, data):
    model = AutoModelForCausalLM.from_pretrained(found.models[0], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(found.models[0])
    right = []
    for row in map(json.loads, data[1].read_text().splitlines()):
        chat = [{"role": "user", "content": row["instruction"]}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        scores = []
        for label in LABELS:
            ids = tokenizer(label, add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            scores.append(logits.log_softmax(-1)[range(len(ids)), ids].sum().item())
        right.append(LABELS[int(np.argmax(scores))] == row["output"])
    accuracy = found.one(model=str(found.models[0]), data="colours", metric="label_accuracy")
    assert accuracy["value"] == pytest.approx(100 * np.mean(right))
    bins = found.rows[(found.rows["metric"] == "reliability_accuracy") & (found.rows["data"] == "colours")]
    assert bins.groupby("model")["n"].sum().tolist() == [6, 6]


def test_the_teacher_itself_is_not_compared_with_itself(found):
    of_teacher = found.rows[found.rows["model"] == str(found.models[0])]
    assert not set(of_teacher["metric"]) & {"reverse_kl", "forward_kl", "ex_acc_err"}
    assert {"rouge_l", "lm_loss", "distinct_4"} <= set(of_teacher["metric"])


def test_two_models_are_tested_on_the_same_prompts(found):
    tests = pd.DataFrame(json.loads(found.read["comparisons.json"]))
    row = tests[(tests["metric"] == "rouge_l") & (tests["bucket"] == ALL)].iloc[0]
    ours, theirs = (found.one(model=str(m), data="asked", metric="rouge_l")["value"] for m in found.models)
    assert row["difference"] == pytest.approx(theirs - ours)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["n"] == 6


@pytest.mark.slow
def test_a_model_that_takes_the_place_of_one_of_its_shape_is_measured_as_if_alone(
    found, data, tmp_path, monkeypatch
):
    teacher, student = found.models
    other = tiny_model("llama", tmp_path / "other", seed=5, width=64, layers=1, tied=True)
    started = []

    def counted(*args: Any, **kinds: Any) -> Any:
        started.append(args)
        return start_eval_workers(*args, **kinds)

    monkeypatch.setattr("minillm_ray.deploy.evaluation.runner.start_eval_workers", counted)
    config = settings((other, student), data, tmp_path / "out", teacher=teacher)
    rows = evaluate(config).rows
    assert len(started) == 1, "the second model needs no new actors"

    def of(rows: list[dict[str, Any]], model: Path) -> dict[tuple[Any, ...], list[float]]:
        mine = [row for row in rows if row["model"] == str(model)]
        names = [(row["data"], row["metric"], row["bucket"], row["seed"]) for row in mine]
        columns = ("value", "low", "high", "n")
        figures = [[np.nan if row[c] is None else row[c] for c in columns] for row in mine]
        return dict(zip(names, figures, strict=True))

    after, alone = of(rows, student), of(json.loads(found.read["results.json"]), student)
    assert after.keys() == alone.keys()
    for key, want in alone.items():
        assert after[key] == pytest.approx(want, rel=1e-4, abs=1e-5, nan_ok=True), key
    key = "asked", "reverse_kl", ALL, None
    assert of(rows, other)[key][0] != pytest.approx(after[key][0], rel=1e-3)


@pytest.mark.slow
def test_what_is_there_is_not_measured_again_unless_the_data_says_something_else(found, data, monkeypatch):
    def must_not_start(*_: Any, **__: Any) -> Callable:
        raise AssertionError("an actor was started")

    monkeypatch.setattr("minillm_ray.deploy.evaluation.runner.start_eval_workers", must_not_start)
    again = evaluate(settings(found.models, data, found.folder))
    assert json.loads(found.read["results.json"]) == again.rows
    fewer = evaluate(settings(found.models, data, found.folder, "metrics=[rouge_l]"))
    assert fewer.rows == again.rows  # nothing is taken away
    alone = evaluate(settings(found.models[:1], data[:1], found.folder))
    assert {row["model"] for row in alone.rows} == set(map(str, found.models))  # results add up
    before = data[0].read_text()
    data[0].touch()
    assert evaluate(settings(found.models, data, found.folder)).rows
    data[0].write_text(before.replace("say", "tell"))
    with pytest.raises(AssertionError, match="an actor was started"):
        evaluate(settings(found.models, data, found.folder))
