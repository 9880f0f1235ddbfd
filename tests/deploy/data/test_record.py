"""A run that is resumed reads what it read before, or is told where it does not."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from minillm_ray.common.errors import DataError
from minillm_ray.common.types import Passage, Prompt
from minillm_ray.deploy.data.record import keep_record, refuse_other_data, start_time


def prompts(*tokens: int, references: tuple[str, ...] = ()) -> list[Prompt]:
    return [
        Prompt(id=f"train/{n}", token_ids=np.array([3, token], np.int32), references=references)
        for n, token in enumerate(tokens)
    ]


def passages(*tokens: int) -> list[Passage]:
    ids = np.array([1], np.int32)
    return [
        Passage(prompt_id=f"train/{n}", prompt_ids=ids, answer_ids=np.array([token], np.int32))
        for n, token in enumerate(tokens)
    ]


STARTED = datetime(2026, 5, 4, 3, 2, 1)


def test_the_time_of_the_start_is_kept_ever_after(tmp_path):
    assert abs((start_time(tmp_path) - datetime.now()).total_seconds()) < 5
    keep_record(tmp_path, STARTED, {})
    assert start_time(tmp_path) == STARTED


def test_the_same_data_is_taken_again(tmp_path):
    sets = {"data.train": prompts(1, 2, 3), "data.train (given answers)": passages(5, 6)}
    keep_record(tmp_path, STARTED, sets)
    refuse_other_data(tmp_path, sets, "mend it")


@pytest.mark.parametrize(
    ("now", "which"),
    [
        ({"data.train": prompts(1, 9, 3)}, r"data\.train differs .* first in train/1; mend it"),
        ({"data.train": prompts(1, 2, 3, 4)}, r"data\.train differs .* first in train/3"),
        ({"data.train": prompts(1, 2)}, r"data\.train differs .* 2 records in place of 3"),
        ({"data.train": prompts(1, 2, 3, references=("x",))}, r"data\.train differs .* first in train/0"),
        ({"data.train (given answers)": passages(5, 7)}, r"data\.train differs .* first in train/1"),
    ],
)
def test_other_data_is_refused_by_its_first_record(tmp_path, now, which):
    keep_record(
        tmp_path, STARTED, {"data.train": prompts(1, 2, 3), "data.train (given answers)": passages(5, 6)}
    )
    with pytest.raises(DataError, match=which):
        refuse_other_data(tmp_path, now, "mend it")


def test_a_folder_without_a_record_refuses_nothing(tmp_path):
    refuse_other_data(tmp_path, {"data.train": prompts(1)}, "mend it")
