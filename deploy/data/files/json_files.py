"""JSON Lines, and JSON documents: an array of records, records by split, or lines after all."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .opening import SPLIT_WORDS, TO_UTF8, Placed, UnreadableRecord, decoded, open_bytes

SURROGATE = b"\\ud"
"""How JSON writes one half of a character; a half alone is no text."""


def read_json_lines(path: Path, split: str = "train") -> Iterator[Placed]:
    """One object on each line; blank lines are passed over."""
    del split
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = _without_mark(line)
            if line.isspace() or not line:
                continue
            place = f"line {number}"
            yield place, _record(_parsed(line, place, number), place, "[", "name the file .json")


def read_json(path: Path, split: str = "train") -> Iterator[Placed]:
    """An array of objects; an object with such arrays, by split; one object; or JSON Lines."""
    with open_bytes(path) as file:
        content = _without_mark(file.read()).strip()
    if content.startswith(b"{") and _is_lines(content):
        yield from read_json_lines(path)
        return
    document = _parsed(content, "line 1", 1)
    if isinstance(document, list):
        records = document
    elif not isinstance(document, Mapping):
        raise UnreadableRecord("line 1", f"is a {_named(document)}", "give an array of objects")
    elif members := {name: value for name, value in document.items() if _is_records(value)}:
        records = _member(members, split)
    elif any(isinstance(value, Mapping | list) for value in document.values()) and _is_columns(document):
        raise UnreadableRecord(
            "line 1",
            "holds columns, not records",
            "write one object for each record (pandas: orient='records')",
        )
    else:
        records = [document]
    for number, record in enumerate(records, 1):
        place = f"element {number}"
        yield place, _record(record, place, "", "give an array of objects")


def _is_lines(content: bytes) -> bool:
    """Whether the first line is a whole object and more follows."""
    first, _, rest = content.partition(b"\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except ValueError:
        return False
    return True


def _is_records(value: Any) -> bool:
    """Whether this is an array of records, and not the turns of a chat."""
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) for one in value):
        return False
    return not any("role" in one or "from" in one for one in value)


def _is_columns(document: Mapping[str, Any]) -> bool:
    lengths = {len(value) if isinstance(value, Mapping | list) else None for value in document.values()}
    return len(lengths) == 1 and not any(_is_chat(value) for value in document.values())


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, Mapping) for one in value)


def _member(members: Mapping[str, list[Any]], split: str) -> list[Any]:
    if split in members:
        return members[split]
    splits = [word for words in SPLIT_WORDS.values() for word in words]
    if split == "train" and len(members) == 1 and not any(name in splits for name in members):
        return next(iter(members.values()))
    reason = f"is an object with records under {', '.join(members)}, and none under {split}"
    raise UnreadableRecord("line 1", reason, f"set split to one of {', '.join(members)}")


def _parsed(content: bytes, place: str, first_line: int) -> Any:
    """The value that these bytes are. Raises UnreadableRecord for what is no JSON, or says a key twice."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnreadableRecord(place, "is UTF-16", TO_UTF8)
    text = decoded(content, place)
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if "\n" in text.strip():  # a document over several lines
            place = f"line {first_line + error.lineno - 1}"
        raise UnreadableRecord(
            place, f"is no JSON: {error.msg} at character {error.colno}", _way_out(text)
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord(place, f"cannot be read: {error}", "mend the record") from error
    if SURROGATE in content.lower():
        _refuse_half_characters(value, place)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for n, (name, _) in enumerate(pairs) if name in dict(pairs[:n]))
        raise ValueError(f"the key {twice!r} comes twice in one object")
    return found


def _refuse_half_characters(value: Any, place: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        reason = "holds one half of a surrogate pair, which is no character"
        raise UnreadableRecord(place, reason, "mend the text") from error


def _way_out(text: str) -> str:
    if text.strip() in ("{", "[") or text.rstrip().endswith(("{", "[")):
        return "a document over several lines is named .json; .jsonl has one object on each line"
    return "mend it: one object on each line of .jsonl, one array of objects in .json"


def _record(value: Any, place: str, opening: str, fix: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    way_out = fix if isinstance(value, list) else "give an object, with a value for each column"
    raise UnreadableRecord(place, f"is {_named(value)}, not an object", way_out)


def _named(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {list: "an array", str: "text", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _without_mark(content: bytes) -> bytes:
    return content.removeprefix(codecs.BOM_UTF8)
