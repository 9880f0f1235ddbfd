"""Rows handed over from Python lie in the run's folder as Parquet, just as they were."""

from __future__ import annotations

from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minillm_ray.common.errors import DataError
from minillm_ray.deploy.data.given import paths_of, write_data

ROWS = [{"instruction": "say red", "output": "007"}, {"instruction": "say blue", "output": "2024-01-31"}]


def test_a_list_a_dataset_and_a_mapping_of_both_come_back_as_they_were(tmp_path):
    data = {"train": datasets.Dataset.from_list(ROWS), "validation": ROWS[:1]}
    write_data(data, tmp_path)
    files = paths_of(data, tmp_path)
    assert sorted(files) == ["train", "validation"]
    assert pq.read_table(files["train"]).to_pylist() == ROWS
    assert pq.read_table(files["validation"]).to_pylist() == ROWS[:1]
    write_data(ROWS, tmp_path / "list")
    assert pq.read_table(paths_of(ROWS, tmp_path / "list")["train"]).to_pylist() == ROWS


def test_a_selection_of_a_dataset_is_what_is_written(tmp_path):
    chosen = datasets.Dataset.from_list(ROWS * 3).select([5, 0])
    write_data(chosen, tmp_path)
    assert pq.read_table(paths_of(chosen, tmp_path)["train"]).to_pylist() == [ROWS[1], ROWS[0]]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CHAT = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({"instruction": TEXT, "output": TEXT, "messages": CHAT}), min_size=1))
def test_any_rows_of_text_and_chats_come_back_as_they_were(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("given")
    write_data(rows, folder)
    assert pq.read_table(paths_of(rows, folder)["train"]).to_pylist() == rows


def test_a_row_that_lacks_a_column_holds_nothing_there(tmp_path):
    rows = [{"instruction": "a"}, {"instruction": "b", "output": "c"}]
    write_data(rows, tmp_path)
    assert pq.read_table(paths_of(rows, tmp_path)["train"]).to_pylist() == [
        {**rows[0], "output": None},
        rows[1],
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"dev": ROWS}, "expected splits called train, validation, test"),
        ({}, "nothing in it"),
        ("rows.jsonl", r"a file is named by data\.train\.path"),
        ([{"a": 1}, 3], "row 2 is a int"),
        ([], "has no rows"),
        ([{"output": "42"}, {"output": ["7", "seven"]}], "a column of several types"),
        ({"test": iter(ROWS)}, r"data\[test\] is a "),
    ],
)
def test_what_makes_no_table_is_refused_by_name(data: Any, says, tmp_path):
    with pytest.raises(DataError, match=says):
        write_data(data, tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))
