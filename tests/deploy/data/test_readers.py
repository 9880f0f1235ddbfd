"""What a file says is what a run reads: text stays text, in every format, or is refused by name and place."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minillm_ray.common.config.data import PromptData, TextConfig
from minillm_ray.common.errors import DataError
from minillm_ray.deploy.data.readers import Rows, Table, read_documents, read_rows, read_table

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table(
    path: Path | str, columns: tuple[str, ...] = ("instruction", "input", "output"), **more: Any
) -> Table:
    return read_table(PromptData(path=str(path), **more), "data.train", columns)


def rows_of(found: Table) -> list[dict[str, Any]]:
    return [{name: column[n] for name, column in found.columns.items()} for n in range(len(found))]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(path: Path | str, **more: Any) -> str:
    with pytest.raises(DataError) as error:
        table(path, **more)
    return str(error.value)


# What is read as it stands


def test_dates_and_numbers_written_as_text_stay_the_text_that_they_are(tmp_path):
    rows = [{"instruction": "when", "input": "2024-01-31", "output": "2024-01-31"}] * 2
    assert rows_of(table(lines(tmp_path / "a.jsonl", rows))) == rows
    (tmp_path / "a.csv").write_text("instruction,input\na,007\nb,1.50\nc,true\nd,NA\ne,\n")
    assert table(tmp_path / "a.csv").columns["input"] == ["007", "1.50", "true", "NA", ""]
    (tmp_path / "a.tsv").write_text("instruction\tinput\na,b\t1e3\n")
    assert rows_of(table(tmp_path / "a.tsv")) == [{"instruction": "a,b", "input": "1e3"}]


def test_a_column_may_hold_text_in_one_record_and_a_list_in_the_next(tmp_path):
    rows = [{"instruction": "a", "output": "42"}, {"instruction": "b", "output": ["7", "seven"]}]
    assert rows_of(table(lines(tmp_path / "a.jsonl", rows))) == rows


def test_a_column_may_appear_late_and_a_record_may_lack_it(tmp_path):
    rows = [{"instruction": f"{n}"} for n in range(3000)] + [{"instruction": "x", "input": "late"}]
    found = table(lines(tmp_path / "a.jsonl", rows))
    assert found.columns["input"] == [None] * 3000 + ["late"]


def test_columns_that_no_setting_names_do_no_harm(tmp_path):
    row = {"id": 7, "source": None, "model": {"x": [1]}, "system_prompt": "s", "messages": [{"role": "user"}]}
    found = table(lines(tmp_path / "a.jsonl", [row]), ("messages",))
    assert rows_of(found) == [{"messages": row["messages"]}]
    assert found.names == tuple(row)


def test_names_with_brackets_are_names(tmp_path):
    lines(tmp_path / "data[12].jsonl", [{"instruction": "mine"}] * 2)
    lines(tmp_path / "data1.jsonl", [{"instruction": "another's"}] * 7)
    assert table(tmp_path / "data[12].jsonl").columns["instruction"] == ["mine"] * 2
    (tmp_path / "run[1]").mkdir()
    lines(tmp_path / "run[1]" / "a*.jsonl", [{"instruction": "here"}])
    assert table(tmp_path / "run[1]").columns["instruction"] == ["here"]


def test_parquet_shards_may_have_other_columns_and_types(tmp_path):
    pq.write_table(pa.table({"instruction": ["a"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"instruction": ["b"], "input": ["more"], "n": [1]}), tmp_path / "1.parquet")
    late = pa.table({"input": pa.array(["text"], pa.large_string()), "instruction": ["c"], "n": ["one"]})
    pq.write_table(late, tmp_path / "2.parquet")
    assert rows_of(table(tmp_path)) == [
        {"instruction": "a", "input": None},
        {"instruction": "b", "input": "more"},
        {"instruction": "c", "input": "text"},
    ]


def test_records_of_a_table_keep_only_the_keys_that_they_have(tmp_path):
    calls = [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [{"a": 1}]}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
    ]
    pq.write_table(pa.table({"messages": calls}), tmp_path / "a.parquet")
    found = table(tmp_path / "a.parquet", ("messages",)).columns["messages"]
    assert found[1] == calls[1]
    assert found[0][1] == {"role": "assistant", "tool_calls": [{"a": 1}]}


def test_a_json_document_is_an_array_one_record_lines_or_records_by_split(tmp_path):
    rows = [{"instruction": "a"}, {"instruction": "b"}]
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "one.json").write_text(json.dumps(rows[0], indent=2))
    lines(tmp_path / "lines.json", rows)
    (tmp_path / "splits.json").write_text(json.dumps({"train": rows, "test": rows[:1]}))
    (tmp_path / "data.json").write_text(json.dumps({"version": "1", "data": rows}))
    for name in ("array.json", "lines.json", "splits.json", "data.json"):
        assert rows_of(table(tmp_path / name)) == rows
    assert rows_of(table(tmp_path / "one.json")) == rows[:1]
    assert rows_of(table(tmp_path / "splits.json", split="test")) == rows[:1]
    assert "set split to one of train, test" in refused(tmp_path / "splits.json", split="dev")


def test_one_chat_in_a_json_document_is_a_record(tmp_path):
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    (tmp_path / "a.json").write_text(json.dumps(chat))
    assert table(tmp_path / "a.json", ("messages",)).columns["messages"] == [chat["messages"]]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_read_as_what_they_hold(tmp_path, ending):
    rows = [{"instruction": "a"}, {"instruction": "b\u2028c"}]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    whole = gzip.compress(content) if ending == ".gz" else bytes(pa.compress(content, "zstd", asbytes=True))
    if ending == ".zst":
        with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
            file.write(content)
        whole = (tmp_path / "a.jsonl.zst").read_bytes()
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(whole)
    assert rows_of(table(path)) == rows
    path.write_bytes(whole[: len(whole) - 6])
    assert "cannot be read" in refused(path)


def test_a_folder_is_read_with_every_file_in_it_by_name(tmp_path):
    lines(tmp_path / "b.jsonl", [{"instruction": "b"}])
    (tmp_path / "a.csv").write_text("instruction\na\n")
    (tmp_path / "deep").mkdir()
    pq.write_table(pa.table({"instruction": ["c"]}), tmp_path / "deep" / "c.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".cache").write_text("hidden")
    found = table(tmp_path)
    assert found.columns["instruction"] == ["a", "b", "c"]
    assert list(found.locations) == ["line 2 of a.csv", "line 1 of b.jsonl", "row 1 of c.parquet"]
    (tmp_path / "notes.docx").write_bytes(b"x")
    assert "holds notes.docx, which no reader takes" in refused(tmp_path)


def test_a_folder_whose_files_say_their_split_is_read_by_split(tmp_path):
    for split, name in (("a", "train-00000.jsonl"), ("b", "train-00001.jsonl"), ("c", "dev.jsonl")):
        lines(tmp_path / name, [{"instruction": split}])
    assert table(tmp_path).columns["instruction"] == ["a", "b"]
    assert table(tmp_path, split="validation").columns["instruction"] == ["c"]
    assert "which has validation, train; set data.train.split to one of them" in refused(
        tmp_path, split="test"
    )
    lines(tmp_path / "more.jsonl", [{"instruction": "d"}])
    assert "more.jsonl, whose name says no split" in refused(tmp_path)


def test_a_part_of_a_split_and_a_limit_take_the_first_records(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"instruction": str(n)} for n in range(10)])
    assert table(path, split="train[:3]").columns["instruction"] == ["0", "1", "2"]
    assert table(path, split="train[80%:]").columns["instruction"] == ["8", "9"]
    assert table(path, split="train[2:9]", limit=2).columns["instruction"] == ["2", "3"]
    assert table(path, limit=4).columns["instruction"] == ["0", "1", "2", "3"]
    assert "is none of 10 records" in refused(path, split="train[20:]")
    assert "a file is the split train" in refused(path, split="test")


def test_a_limit_ends_the_reading_before_what_cannot_be_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "a"}\nbroken\n')
    assert len(table(path, limit=1)) == 1


def test_documents_are_text_files_or_the_records_of_other_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo", encoding="utf-8-sig")
    assert read_documents(TextConfig(path=str(tmp_path / "a.txt"), column="any")) == ["one\ntwo"]
    lines(tmp_path / "b.jsonl", [{"text": "x"}, {"text": " "}, {"text": None}, {"text": "y"}])
    assert read_documents(TextConfig(path=str(tmp_path / "b.jsonl"))) == ["x", "y"]
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.txt").write_text("three")
    assert read_documents(TextConfig(path=str(tmp_path))) == ["one\ntwo", "three"]


# What is refused, with file, place and way out


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"instruction": "a"}\n\n{"instruction": \n', ": line 3 of a.jsonl is no JSON"),
        ("a.jsonl", b'{"instruction": "a"}\n["b"]\n', "line 2 of a.jsonl is an array, not an object"),
        ("a.jsonl", b'[\n {"instruction": "a"}\n]\n', "is named .json"),
        ("a.jsonl", b'{"instruction": "a", "instruction": "b"}\n', "the key 'instruction' comes twice"),
        ("a.jsonl", b'{"instruction": "caf\xe9"}\n', "line 1 of a.jsonl is not UTF-8"),
        ("a.jsonl", '{"instruction": "a"}\n'.encode("utf-16"), "line 1 of a.jsonl is UTF-16"),
        ("a.jsonl", b'{"instruction": "\\ud83d"}\n', "one half of a surrogate pair"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "has no records"),
        ("a.json", b'[{"instruction": "a"}, 5]', "element 2 of a.json is a number, not an object"),
        ("a.json", b'{"instruction": ["a", "b"], "output": ["c", "d"]}', "holds columns, not records"),
        ("a.json", b'[{"instruction": "a"},\n {"instruction": }]', "line 2 of a.json is no JSON"),
        (
            "a.csv",
            b"instruction,output\na,b\nc,d,e\n",
            "line 3 of a.csv has 3 fields, and the first line names 2",
        ),
        ("a.csv", b'instruction,output\n"a\nb",c\nd\n', "line 4 of a.csv has 1 fields"),
        ("a.csv", b'instruction,output\na,"b\n', "line 2 of a.csv cannot be read"),
        ("a.csv", b"instruction;output\na;b\n", "its fields seem to stand between ';'"),
        ("a.csv", b"instruction,instruction\na,b\n", "names the column 'instruction' twice"),
        ("a.csv", b"instruction\nok\ncaf\xe9\n", "line 3 of a.csv is not UTF-8"),
        ("a.parquet", b"not parquet", "a.parquet cannot be read"),
        ("a.xlsx", b"x", "is not of a known kind; known are .jsonl"),
        ("a.txt", b"x", "is not of a known kind"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place_and_the_way_out(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert says in message
    assert message.startswith("data.train.path = ")
    assert "; " in message


def test_long_fields_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("instruction\n" + "x" * 1_000_000 + "\n")
    assert len(table(tmp_path / "a.csv").columns["instruction"][0]) == 1_000_000


def test_a_file_is_read_as_it_is_now_whatever_was_read_before(tmp_path):
    import os

    path = lines(tmp_path / "a.jsonl", [{"instruction": "old"}])
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert table(path).columns["instruction"] == ["old"]
    lines(path, [{"instruction": "new"}])
    os.utime(path, ns=times)
    assert table(path).columns["instruction"] == ["new"]


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"instruction": "a", "answer": "b"}])
    rows = read_rows(PromptData(path=str(path), output="answers"), "data.train")
    with pytest.raises(DataError, match=r"data\.train\.output = answers: .* did you mean answer\?"):
        rows.column("output", may_lack="output")
    assert isinstance(rows, Rows)
    assert rows.column("input", may_lack="input") == [None]


# Whatever is written comes back


@QUICK
@given(st.lists(st.dictionaries(st.sampled_from("abc"), NESTED), min_size=1, max_size=5))
def test_rows_written_as_json_lines_or_as_an_array_come_back(tmp_path, rows):
    lines(tmp_path / "a.jsonl", rows)
    expected = [{name: row.get(name) for name in {n for r in rows for n in r}} for row in rows]
    assert rows_of(table(tmp_path / "a.jsonl", ("a", "b", "c"))) == expected
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert rows_of(table(tmp_path / "a.json", ("a", "b", "c"))) == expected


@QUICK
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), st.sampled_from([",", "\t"]))
def test_rows_written_as_csv_or_tsv_come_back(tmp_path, rows, delimiter):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([("a", "b"), *rows])
    path = tmp_path / {",": "a.csv", "\t": "a.tsv"}[delimiter]
    path.write_bytes(text.getvalue().encode())
    assert rows_of(table(path, ("a", "b"))) == [{"a": a, "b": b} for a, b in rows]


@QUICK
@given(st.lists(st.tuples(st.none() | TEXT, st.lists(TEXT, max_size=3)), min_size=1, max_size=5))
def test_rows_written_as_parquet_or_arrow_come_back(tmp_path, rows):
    schema = pa.schema({"a": pa.string(), "b": pa.list_(pa.string())})
    columns = pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]}, schema=schema)
    pq.write_table(columns, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), schema) as stream:
        stream.write_table(columns)
    for name in ("a.parquet", "a.arrow"):
        assert rows_of(table(tmp_path / name, ("a", "b"))) == [{"a": a, "b": b} for a, b in rows]
