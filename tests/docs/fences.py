"""Fenced blocks of the documents, and the mark in the line above each that says whether a test runs it.

    <!-- test -->
    ```bash
    minillm check run.yaml
    ```

`test` blocks are executed by `test_examples`; `untried` ones are not, and say so to whoever reads the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARKS = ("test", "untried")
MARKED = ("bash", "sh", "shell", "console", "yaml", "python")
"""Languages that a reader may want to run: each block of theirs carries a mark."""
PLAIN = ("text", "json", "toml")
"""Languages that nobody runs."""
_MARK = re.compile(r"<!-- ([\w-]+) -->")
_OPEN = re.compile(r"( *)(`{3,}|~{3,})\s*(.*)")


@dataclass(frozen=True, slots=True)
class Fence:
    """One fenced block."""

    file: str
    line: int
    """Of its first backticks, from 1."""
    language: str
    mark: str | None
    text: str

    @property
    def where(self) -> str:
        """As editors and terminals link it."""
        return f"{self.file}:{self.line}"

    @property
    def name(self) -> str | None:
        """The file that the block is, by a first line such as `# run.yaml`."""
        found = re.match(r"# ([\w.-]+\.\w+)\n", self.text)
        return found[1] if found else None


def fences(file: str, text: str) -> Iterator[Fence]:
    """Every fenced block of a Markdown text."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opened = _OPEN.fullmatch(lines[number])
        if opened is None:
            number += 1
            continue
        first, indent = number, len(opened[1])
        number += 1
        while number < len(lines) and lines[number].strip() != opened[2]:
            number += 1
        body = "".join(line[indent:] + "\n" for line in lines[first + 1 : number])
        above = _MARK.fullmatch(lines[first - 1].strip()) if first else None
        words = opened[3].split()
        yield Fence(file, first + 1, words[0] if words else "", above[1] if above else None, body)
        number += 1


def documents(repo: Path) -> dict[str, str]:
    """Path -> text of every document: those in the root and those in docs/."""
    files = [*sorted(repo.glob("*.md")), *sorted((repo / "docs").rglob("*.md"))]
    return {file.relative_to(repo).as_posix(): file.read_text(encoding="utf-8") for file in files}


def complaints(found: Fence) -> list[str]:
    """What is wrong with a block's language and mark."""
    if found.language not in MARKED + PLAIN:
        known = ", ".join(MARKED + PLAIN)
        return [f"{found.where}: the language {found.language!r} is none of {known}"]
    if found.mark is not None and found.mark not in MARKS:
        return [f"{found.where}: the mark {found.mark!r} is none of {', '.join(MARKS)}"]
    if found.language in MARKED and found.mark is None:
        return [f"{found.where}: {found.language} needs <!-- test --> or <!-- untried --> in the line above"]
    return []
