"""A fault is data until it is shown; then it says key, value and way out, and where it holds."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from minillm_ray.common.errors import (
    ABSENT,
    ConfigError,
    DataError,
    Fault,
    ModelError,
    collect_error,
    join_scopes,
    merge_errors,
    shown,
    told,
)

CLIP = Fault("objective.clip", "upper", "cannot be used here", "set it to none", also=("rollout.top_p",))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (CLIP, "objective.clip = upper cannot be used here; set it to none"),
        (Fault("teacher", ABSENT, "is missing", "set teacher.path"), "teacher is missing; set teacher.path"),
        (Fault("seed", -1, "", "expected 0 or more"), "invalid value -1 for seed; expected 0 or more"),
        (Fault("text", None, "is unset", ""), "text = null is unset"),
        (
            Fault("data.train.path", "a", ": row 3 is odd", "mend it"),
            "data.train.path = a: row 3 is odd; mend it",
        ),
        (Fault("", ABSENT, "there is no such file", "give one"), "there is no such file; give one"),
        (CLIP.within("phases.a").within("phases.b"), f"phases.a, phases.b: {CLIP}"),
    ],
)
def test_words_say_where_what_and_the_way_out(fault, says):
    assert str(fault) == says


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (5e-6, "5e-06"),
        (1.0, "1"),
        ("a", "a"),
        (Path("a/b"), "a/b"),
        ([1], "[1]"),
    ],
)
def test_values_are_shown_as_they_are_written_in_a_run_file(value, words):
    assert shown(value) == words


@pytest.mark.parametrize(
    ("key", "concerned"),
    [
        ("objective.clip", True),
        ("objective", True),
        ("objective.clip.deeper", True),
        ("rollout.top_p", True),
        ("rollout", True),
        ("rollout.top", False),
        ("objective.clip_centre", False),
        ("clip", False),
    ],
)
def test_a_fault_concerns_its_settings_and_the_sections_that_hold_them(key, concerned):
    assert CLIP.concerns(key) is concerned


def test_a_fault_of_several_parts_of_a_file_is_told_once():
    values = Fault("data", {"path": ["a"]}, "is odd", "mend it")
    found = join_scopes([CLIP.within("phases.a"), values.within("phases.a"), CLIP.within("phases.b")])
    assert [fault.scope for fault in found] == [("phases.a", "phases.b"), ("phases.a",)]


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([DataError(CLIP)], DataError),
        ([ModelError(CLIP), ModelError("another")], ModelError),
        ([ModelError(CLIP), DataError("another")], ConfigError),
        ([ConfigError(CLIP), ConfigError("another")], ConfigError),
    ],
)
def test_errors_of_one_kind_are_merged_into_one_of_it(errors, kind):
    merged = merge_errors(errors, "this test")
    assert type(merged) is kind
    assert merged.faults == tuple(fault for error in errors for fault in error.faults)


def test_a_collected_error_is_kept_and_other_ones_pass():
    def fail(error: Exception) -> None:
        raise error

    found = []
    assert collect_error(found, fail, DataError(CLIP)) is None
    assert [error.faults for error in found] == [(CLIP,)]
    with pytest.raises(KeyError):
        collect_error(found, fail, KeyError("a"))


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError])
def test_faults_arrive_as_they_were_sent(kind):
    sent = kind(CLIP.within("phases.a"), Fault("teacher", ABSENT, "is missing", ""), source="run.yaml")
    got = pickle.loads(pickle.dumps(sent))
    assert (type(got), got.faults, got.source, str(got)) == (kind, sent.faults, "run.yaml", str(sent))
    assert got.faults[1].value is ABSENT


def test_an_error_of_another_library_is_told_in_a_line_whatever_it_says():
    def fault(raises) -> BaseException:
        try:
            raises()
        except Exception as error:
            return error
        raise AssertionError

    def nothing() -> None:
        assert not "a reason"

    def much() -> None:
        raise ValueError("one " * 200 + "\nand another")

    assert told(fault(nothing)).startswith("AssertionError: assert not ")
    assert told(KeyError()) == "KeyError"
    assert told(fault(much)).startswith("ValueError: one one")
    assert len(told(fault(much))) < 320
