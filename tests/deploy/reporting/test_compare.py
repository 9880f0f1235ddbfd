"""Runs and evaluations are read with labels of their own, shown whole, and refused with a way out."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from minillm_ray.common.errors import ConfigError
from minillm_ray.common.metrics import CATALOGUE
from minillm_ray.deploy.evaluation.rows import AnswerFigures, LabelFigures, Part, comparisons_of
from minillm_ray.deploy.evaluation.rows import rows_of as rows_of_part
from minillm_ray.deploy.evaluation.store import EvalDir
from minillm_ray.deploy.reporting.compare import Comparison, compare, render
from minillm_ray.deploy.reporting.eval_plots import EXPOSURE, bucket_order, plot_evaluations
from minillm_ray.deploy.reporting.plots import PANELS, styles
from minillm_ray.deploy.reporting.sources import Score, read_sources, short_names
from minillm_ray.deploy.training.metrics_log import read_metrics
from rich.console import Console

BUCKETS = ("[0,5]", "[6,10]", "[11,inf)")
BINS = [f"{i / 10:.1f}-{(i + 1) / 10:.1f}" for i in range(10)]


def run(folder: Path, *, steps: int = 4, gain: float = 0.0, metric: str = "validation/rouge_l") -> Path:
    """A run of optimiser steps of 2 s, two to a set of answers, with an event among its lines."""
    lines: list[dict[str, Any]] = [{"at": 0.0, "event": "warning", "text": "short answers"}]
    for step in range(1, steps + 1):
        speed = 100.0 if step % 2 else 300.0
        seconds = 3.0 if step % 2 else 1.0
        values = {"learner/loss": 2.0 / step, "learner/step_s": seconds, "learner/tokens_per_s": speed}
        lines.append({"at": 10.0 * step, "step": step, **values})
        if step % 2 == 0:
            lines.append({"at": 10.0 * step, "step": step, "run/iteration_s": 7.0})
            lines.append({"at": 10.0 * step, "step": step, metric: 50.0 + gain + step % 4})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def row(model: str, data: str, metric: str, bucket: str | None, value: float | None, **more: Any) -> dict:
    edges = {"low": None, "high": None} if value is None else {"low": value - 1, "high": value + 1}
    return (
        dict(model=model, data=data, metric=metric, bucket=bucket, seed=None, value=value, n=40)
        | edges
        | more
    )


def rows_of(model: str, data: str = "dolly", gain: float = 0.0) -> list[dict]:
    rows = [
        row(model, data, metric, "all", value + gain)
        for metric, value in (("rouge_l", 30.0), ("exact_match", 10.0), ("reverse_kl", 0.5))
    ]
    rows += [row(model, data, "rouge_l", "all", 1000.0, seed=seed) for seed in (10, 20)]
    for n, bucket in enumerate(BUCKETS):
        empty = n == 0
        rows.append(row(model, data, "rouge_l", bucket, None if empty else 20.0 + n, n=0 if empty else 20))
    for metric in EXPOSURE:
        rows += [row(model, data, metric, str(length), math.sqrt(length) + gain) for length in range(1, 12)]
    return rows


def label_rows(model: str, data: str = "sst2") -> list[dict]:
    rows = [row(model, data, "label_accuracy", "all", 80.0), row(model, data, "ece", "all", 0.1)]
    for n, bucket in enumerate(BINS):
        accuracy, confidence, count = (n / 10, n / 10 + 0.05, 8) if n > 4 else (None, None, 0)
        rows.append(row(model, data, "reliability_accuracy", bucket, accuracy, n=count))
        rows.append(row(model, data, "reliability_confidence", bucket, confidence, n=count))
    return rows


def evaluation(folder: Path, rows: list[dict], tests: list[dict] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(rows))
    if tests is not None:
        (folder / "comparisons.json").write_text(json.dumps(tests))
    return folder


def text_of(comparison: Comparison, width: int = 100) -> str:
    page = io.StringIO()
    Console(width=width, file=page).print(render(comparison))
    return page.getvalue()


def shown(*folders: Path, width: int = 100) -> str:
    """What a terminal shows of these folders, without drawing pictures."""
    return text_of(Comparison(sources=read_sources(folders), pictures=(), notes=()), width)


def cells(text: str, *words: str) -> list[str]:
    """The cells of the only line that has all these words."""
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return [cell for cell in line.replace("  ", "\t").split("\t") if cell.strip()]


def test_what_the_tests_read_is_what_runs_write(tmp_path):
    for line in read_metrics(run(tmp_path / "a")):
        assert all(name in CATALOGUE for name in line if "/" in name)


def part(model: str, gain: float) -> Part:
    """Five prompts with two seeds each, no reference of more than ten words, and five classifications."""
    answers = [
        AnswerFigures(
            prompt_id=f"dolly/{n}", sample=0, seed=seed, rouge_l=10.0 * n + gain, exact_match=50.0,
            accuracy=None, tokens=4, finished=True, repeated_grams=0.0, grams=1.0,
        )
        for n in range(5)
        for seed in (10, 20)
    ]  # fmt: skip
    sure = enumerate((0.5, 0.6, 0.7, 0.8, 0.9))
    labels = [LabelFigures(prompt_id=f"sst2/{n}", confidence=c, right=n > 1, mass=0.9) for n, c in sure]
    words = {f"dolly/{n}": 2 * n for n in range(5)}
    return Part(model=model, data="dolly", answers=answers, labels=labels, words=words)


def test_what_an_evaluation_writes_is_what_is_read(tmp_path):
    parts = [part("first", 0.0), part("second", 5.0)]
    rows = [one for each in parts for one in rows_of_part(each)]
    (tmp_path / "e").mkdir()
    folder = EvalDir(tmp_path / "e")
    folder.write(rows)
    folder.write_comparisons(comparisons_of(parts))
    found = compare([tmp_path / "e"], tmp_path / "out")
    assert {path.stem for path in found.pictures} == {"reliability", "length_buckets"}
    text = text_of(found)
    assert cells(text, "dolly", "first", "20.0 [", "50.0 [50.0,50.0]")
    assert "no answers" in text
    assert "+5.0 [+5.0,+5.0]" in text


def test_runs_stand_side_by_side_with_their_first_last_and_best_values(tmp_path):
    text = shown(run(tmp_path / "short"), run(tmp_path / "long", steps=8, gain=5.0))
    # 50 + step % 4 at steps 2, 4, 6, 8: the first of two equal bests is the one that a run keeps.
    assert [c.strip() for c in cells(text, "long", "57.0")] == ["long", "57.0", "55.0", "57.0", "2"]
    assert cells(text, "short", "52.0")[-1].strip() == "2"


@pytest.mark.parametrize(
    ("losses", "best"), [((math.nan, 2.0, -math.inf, 1.5), ["1.500", "4"]), ((math.nan,), ["-", "-"])]
)
def test_a_value_that_is_no_number_is_never_the_best(tmp_path, losses, best):
    (tmp_path / "a").mkdir()
    lines = [{"step": n, "validation/loss": loss} for n, loss in enumerate(losses, 1)]
    (tmp_path / "a" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [c.strip() for c in cells(shown(tmp_path / "a"), " a ", "nan")[-2:]] == best


def test_speed_is_tokens_over_seconds_and_pauses_do_not_count(tmp_path):
    text = shown(run(tmp_path / "a"))
    # Two steps of 300 tokens in 3 s, two of 300 in 1 s: 150 tokens/s, while the mean of the rates is 200.
    assert [c.strip() for c in cells(text, " a ", "150")] == ["a", "4", "14", "-", "-", "1,200", "150"]


def test_every_picture_is_drawn_and_told(tmp_path):
    folders = [run(tmp_path / "a"), evaluation(tmp_path / "e", rows_of("m") + label_rows("m"))]
    found = compare(folders, tmp_path / "out")
    names = {path.stem for path in found.pictures}
    assert names == {"quality", "learning", "speed", "exposure_bias", "reliability", "length_buckets"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found.pictures)
    assert plt.get_fignums() == []
    text = text_of(found, width=300)
    assert all(str(path) in text for path in found.pictures)


def test_a_picture_of_an_earlier_comparison_does_not_stay(tmp_path):
    whole = evaluation(tmp_path / "e", rows_of("m"))
    compare([whole, run(tmp_path / "a")], tmp_path / "out")
    (tmp_path / "out" / "mine.png").touch()
    compare([whole], tmp_path / "out")
    left = {path.stem for path in (tmp_path / "out").iterdir()}
    assert left == {"exposure_bias", "length_buckets", "mine"}
    assert "quality" in PANELS


def test_an_evaluation_shows_means_with_intervals_and_never_single_seeds(tmp_path):
    text = shown(evaluation(tmp_path / "e", rows_of("m") + rows_of("better", gain=2.0)))
    assert cells(text, "dolly", "m", "30.0 [29.0,31.0]", "10.0 [9.0,11.0]")
    assert cells(text, "better", "32.0 [31.0,33.0]")
    assert "1000" not in text


def test_an_empty_bucket_says_so(tmp_path):
    text = shown(evaluation(tmp_path / "e", rows_of("m")))
    assert cells(text, "no answers", "21.0 [20.0,22.0], 20")
    assert text.index("[0,5]") < text.index("[6,10]") < text.index("[11,inf)")


def test_exposure_bias_is_compared_at_a_length_that_all_models_reach(tmp_path):
    short = [r for r in rows_of("short") if not (r["metric"] == "ex_acc_err" and r["bucket"] in ("10", "11"))]
    text = shown(evaluation(tmp_path / "e", short + rows_of("long")))
    assert cells(text, "short", " 9 ", "3.0 [2.0,4.0]")
    assert cells(text, "long", " 9 ", "3.0 [2.0,4.0]")


def test_a_metric_that_nobody_foresaw_is_shown(tmp_path):
    text = shown(evaluation(tmp_path / "e", [row("m", "dolly", "novelty", None, 0.25)]))
    assert "novelty" in text
    assert "0.250 [-0.750,1.250]" in text


def test_paired_tests_name_both_models_and_warn_of_their_number(tmp_path):
    test = {"data": "dolly", "metric": "rouge_l", "bucket": "all", "a": "x/m", "b": "x/k", "n": 20}
    tests = [
        test | {"difference": 1.5, "low": 0.5, "high": 2.5, "p_value": 0.01},
        test | {"difference": 1.5, "low": -1, "high": 4, "p_value": 0.4},
    ]
    rows = rows_of("x/m") + rows_of("x/k")
    text = shown(evaluation(tmp_path / "e", rows, tests))
    assert cells(text, "dolly", "m", "k", "+1.5 [+0.5,+2.5]", "0.010*")
    assert cells(text, "+1.5 [-1.0,+4.0]", "0.400 ")
    assert "2 tests" in text


def test_tables_fit_into_a_hundred_columns_and_nothing_is_cut_at_sixty(tmp_path):
    folders = [
        run(tmp_path / "a-run"),
        evaluation(tmp_path / "e", rows_of("a/model") + label_rows("a/model")),
    ]
    text = shown(*folders)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in shown(*folders, width=60)


def test_a_model_of_two_evaluations_is_told_apart_by_their_folders(tmp_path):
    first = evaluation(tmp_path / "e1", rows_of("m") + rows_of("only"))
    second = evaluation(tmp_path / "e2", rows_of("m"))
    assert read_sources([first, second]).models == ["m (e1)", "only", "m (e2)"]
    assert read_sources([first]).models == ["m", "only"]


def test_labels_name_folders_in_their_order(tmp_path):
    folders = [run(tmp_path / "a"), evaluation(tmp_path / "b", rows_of("m"))]
    folders.append(evaluation(tmp_path / "c", rows_of("m") + rows_of("k")))
    found = read_sources(folders, ["first", "second", "third"])
    assert list(found.runs) == ["first"]
    assert found.models == ["second", "m (third)", "k (third)"]


def test_a_folder_may_be_a_run_and_an_evaluation(tmp_path):
    both = run(tmp_path / "both")
    (both / "results.json").write_text(json.dumps(rows_of("m")))
    found = read_sources([both])
    assert (list(found.runs), found.models) == (["both"], ["m"])


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (["x/a", "x/b"], ["a", "b"]),
        (["x/a", "y/a", "b"], ["x/a", "y/a", "b"]),
        (["runs/sft/best"], ["sft/best"]),
        (["best"], ["best"]),
        (["a", "x/a"], ["a", "x/a"]),
    ],
)
def test_a_path_is_called_by_the_last_parts_that_tell_it_apart(paths, short):
    assert list(short_names(paths).values()) == short


def test_numbers_that_json_has_no_word_for_are_no_values(tmp_path):
    folder = evaluation(tmp_path / "e", [row("m", "d", "rouge_l", None, math.nan)])
    assert "NaN" in (folder / "results.json").read_text()
    assert read_sources([folder]).scores[0].value is None


def refused(*folders: Path, labels: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        read_sources(folders, labels)
    return str(caught.value)


def test_every_folder_that_cannot_be_used_is_named_at_once_with_a_way_out(tmp_path):
    run(tmp_path / "study" / "sft")
    (tmp_path / "bare").mkdir()
    started = tmp_path / "started"
    started.mkdir()
    (started / "metrics.jsonl").write_text('{"at": 1, "event": "dropped"}\n')
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, [/oops\n{"step": 3}\n')
    none = evaluation(tmp_path / "none", [])
    said = refused(tmp_path / "study", tmp_path / "bare", tmp_path / "gone", started, damaged, none)
    assert f"study is neither a run (metrics.jsonl) nor an evaluation (results.json); name {tmp_path}" in said
    assert "bare is neither" in said
    assert "gone is no folder" in said
    assert "started is a run without any step yet" in said
    assert "damaged/metrics.jsonl, line 2, is no JSON" in said
    assert "none is an evaluation without results" in said
    assert len(said.splitlines()) == 7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[{", "is no JSON"),
        ('{"rows": []}', "is no list of rows but a dict"),
        (json.dumps([row("m", "d", "m", None, None) | {"value": "high"}]), "row 1: value = 'high' cannot"),
        ('[{"model": "m"}]', "row 1: data cannot be used (Field required)"),
    ],
)
def test_a_damaged_result_is_named_by_row_and_key(tmp_path, text, complaint):
    (tmp_path / "results.json").write_text(text)
    said = refused(tmp_path)
    assert complaint in said
    assert "run `minillm eval` again" in said


def test_labels_must_be_one_for_each_folder_and_unlike(tmp_path):
    one, two = run(tmp_path / "one"), run(tmp_path / "two")
    assert "--label names 1 of 2 folders" in refused(one, two, labels=("x",))
    assert "--label = x is given 2 times" in refused(one, two, labels=("x", "x"))
    assert "is named 2 times" in refused(one, tmp_path / "two" / ".." / "one")


def test_where_nothing_is_in_common_what_there_is_is_shown_with_a_note(tmp_path):
    runs = [run(tmp_path / "a"), run(tmp_path / "b", metric="validation/loss")]
    both = [evaluation(tmp_path / "e", rows_of("m")), evaluation(tmp_path / "f", label_rows("k"))]
    found = compare([*runs, *both], tmp_path / "out")
    assert len(found.notes) == 2
    assert "no validation metric is in all runs (a has rouge_l; b has loss)" in found.notes[0]
    assert "k has label_accuracy on sst2" in found.notes[1]
    text = text_of(found)
    assert "52.0" in text
    assert "52.000" in text
    assert "80.0 [79.0,81.0]" in text


def test_the_folder_of_the_pictures_may_be_among_the_folders(tmp_path):
    folders = [run(tmp_path / "a"), tmp_path / "out"]
    compare(folders, tmp_path / "out")
    assert "is where the pictures go" in compare(folders, tmp_path / "out").notes[0]


def test_labels_are_told_apart_by_more_than_colour():
    looks = styles([f"model {i}" for i in range(16)]).values()
    assert len({(preflight.color, preflight.linestyle) for preflight in looks}) == 16
    assert len({preflight.marker for preflight in looks}) == 8
    assert styles(["a", "b", "a"]) == styles(["a", "b"])


def test_a_run_and_its_model_look_the_same_in_all_pictures(tmp_path, monkeypatch):
    looks = []
    for name in ("plot_run", "plot_evaluations"):
        monkeypatch.setattr(
            f"minillm_ray.deploy.reporting.compare.{name}", lambda *args: looks.append(args[2]) or []
        )
    folders = [run(tmp_path / "a"), run(tmp_path / "b"), evaluation(tmp_path / "e", rows_of("b"))]
    compare(folders, tmp_path / "out")
    of_runs, of_models = looks
    assert of_runs["b"] == of_models["b"] != of_runs["a"]


def test_buckets_sort_by_number():
    assert sorted(["11", "2", "1"], key=bucket_order) == ["1", "2", "11"]
    assert sorted(["11+", "6-10", "0-5"], key=bucket_order) == ["0-5", "6-10", "11+"]
    assert sorted(reversed(BUCKETS), key=bucket_order) == list(BUCKETS)
    assert sorted(reversed(BINS), key=bucket_order) == BINS


def test_an_evaluation_without_what_a_picture_needs_has_none(tmp_path):
    scores = [Score.model_validate(one) for one in rows_of("m") if one["bucket"] == "all"]
    assert plot_evaluations(tmp_path, scores) == []


def test_curves_without_any_value_are_drawn_empty(tmp_path):
    rows = [row("m", "d", metric, length, None) for metric in EXPOSURE for length in ("1", "2")]
    scores = [Score.model_validate(one) for one in rows]
    assert [path.stem for path in plot_evaluations(tmp_path, scores)] == ["exposure_bias"]


def test_comparing_loads_neither_torch_nor_ray():
    code = (
        "import sys, minillm_ray.deploy.reporting.compare; print({'torch', 'ray', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
