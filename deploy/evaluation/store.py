"""The folder of an evaluation: what lies where, and what of it a second call need not measure again.

config.yaml          every setting as resolved
results.json         the rows; results.parquet holds the same
comparisons.json     paired tests between any two models
answers/MODEL/DATA/  every answer, one Parquet file for each seed
parts/               what was measured of one model on one data set; kept if the evaluation stops
plots/               pictures
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ...common.config.eval import EvalConfig, EvalData
from ...common.config.run import ModelConfig
from ...common.errors import ConfigError, Fault
from ...common.process import write_atomically
from ..data.record import fingerprint
from .rows import Part, Row, rows_of

if TYPE_CHECKING:
    from .tasks import Task

FREE = ("models", "data", "cluster", "output_dir", "metrics")
"""Settings that may change between two calls on one folder; parts know what they were measured with."""


class EvalDir:
    """Paths of one evaluation, and its parts."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def results(self) -> Path:
        """The rows."""
        return self.path / "results.json"

    @property
    def plots(self) -> Path:
        """Pictures."""
        return self.path / "plots"

    def open(self, config: EvalConfig) -> None:
        """Keep the settings. Raises ConfigError if the folder holds an evaluation that cannot be added to."""
        file, now = self.path / "config.yaml", config.model_dump(mode="json")
        if file.exists():
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
            changed = [
                key for key in now if key not in FREE and _matters(now[key]) != _matters(before.get(key))
            ]
            if changed:
                raise ConfigError(
                    Fault(
                        "output_dir",
                        self.path,
                        f"holds an evaluation with other settings ({', '.join(changed)})",
                        "choose another folder (--output-dir), or delete it",
                        also=tuple(changed),
                    ),
                    source="this evaluation",
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(
                Fault(
                    "output_dir",
                    self.path,
                    "holds something other than an evaluation",
                    "choose another folder (--output-dir)",
                ),
                source="this evaluation",
            )
        self.path.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(now, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def answers(self, model: str, data: str, seed: int) -> Path:
        """File of a model's answers to a data set by one seed."""
        return self.path / "answers" / slug(model) / slug(data) / f"seed-{seed}.parquet"

    def keep(self, part: Part, mark: str) -> None:
        """Write a part, whole or not at all; `mark` tells of what."""
        with write_atomically(self._part(part.model, part.data)) as file:
            file.write_text(json.dumps({"mark": mark, **part.to_json()}), encoding="utf-8")

    def kept(self, model: str, data: str, mark: str) -> Part | None:
        """A part measured earlier; None if there is none, or model or data are others now."""
        found = _read_part(self._part(model, data))
        return None if found is None or found[1] != mark else found[0]

    def others(self, known: Collection[tuple[str, str]]) -> list[Part]:
        """Parts of earlier calls on other models and data than those that are `known`."""
        read = [_read_part(file) for file in sorted(self.path.glob("parts/*.json"))]
        parts = [found[0] for found in read if found is not None]
        return [part for part in parts if (part.model, part.data) not in known]

    def write(self, rows: Sequence[Row]) -> None:
        """results.json, and the same as results.parquet."""
        _write_json(self.results, rows)
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), self.path / "results.parquet")

    def write_comparisons(self, rows: Sequence[Row]) -> None:
        """comparisons.json."""
        _write_json(self.path / "comparisons.json", rows)

    def _part(self, model: str, data: str) -> Path:
        return self.path / "parts" / f"{slug(model)}--{slug(data)}.json"


class ResultStore:
    """What is measured: by earlier calls, then part by part. results.json always holds all of it."""

    def __init__(self, folder: EvalDir, marks: Mapping[tuple[str, str], str], wanted: Sequence[str]):
        """`marks` of each model and data set that are asked for; `wanted` are the metrics."""
        self._folder = folder
        self._asked = list(marks)
        self._parts: dict[tuple[str, str], tuple[Part, list[Row]]] = {}
        kept = [folder.kept(model, data, mark) for (model, data), mark in marks.items()]
        known = [part for part in kept if part is not None]
        for part in (*known, *folder.others(self._asked)):
            self._parts[part.model, part.data] = part, rows_of(part)
        # What lacks a figure is measured again; until then its rows stay.
        self._whole = {(p.model, p.data) for p in known if set(p.metrics).issuperset(wanted)}
        self._write()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._whole

    def __len__(self) -> int:
        """How many of those that are asked for are measured."""
        return len(self._whole)

    def add(self, part: Part) -> None:
        """One more part; its rows are in the results from now on."""
        self._parts[part.model, part.data] = part, rows_of(part)
        self._whole.add((part.model, part.data))
        self._write()

    def parts(self) -> list[Part]:
        """All of them: first those that are asked for, in their order, then those of earlier calls."""
        return [part for part, _ in self._in_order()]

    def rows(self) -> list[Row]:
        """As in results.json."""
        return [row for _, rows in self._in_order() for row in rows]

    def _in_order(self) -> list[tuple[Part, list[Row]]]:
        asked = [self._parts[key] for key in self._asked if key in self._parts]
        return asked + [found for key, found in self._parts.items() if key not in self._asked]

    def _write(self) -> None:
        if self._parts:
            self._folder.write(self.rows())


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("model", "data", "metric", "bucket")),
        ("seed", pa.int32()),
        *((name, pa.float64()) for name in ("value", "low", "high")),
        ("n", pa.int64()),
    ]
)
"""Columns of results.parquet: the keys of a row."""


def mark_of(config: EvalConfig, model: ModelConfig, data: EvalData, task: Task) -> str:
    """Changes with model and teacher, with their settings and files, and with the tokens of the data."""
    named = [model, *([config.teacher] if config.teacher else [])]
    facts: list[Any] = [(_files(one.path), one.model_dump(mode="json", exclude={"name"})) for one in named]
    read = zlib.crc32(fingerprint(task.prompts).tobytes())
    for choices in task.choices:
        for label in choices.labels:
            read = zlib.crc32(label.tobytes(), read)
        read = zlib.crc32(bytes(str(choices.right), "ascii"), read)
    facts.append((read, data.model_dump(mode="json", exclude={"name"})))
    return f"{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"


def _matters(section: Any) -> Any:
    """What of a section changes results: not how many actors share the work, nor the size of pieces."""
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key not in ("num_engines", "num_actors", "chunk")}


def _files(path: str) -> Any:
    """Names, sizes and times of a file, or of those below a folder; a hub name stands for itself."""
    here = Path(path)
    if not here.exists():
        return path
    files = sorted(here.rglob("*")) if here.is_dir() else [here]
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]


def _read_part(file: Path) -> tuple[Part, str] | None:
    """A part and its mark; None where there is none, or one of another version."""
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    try:
        return Part.from_json(found), found["mark"]
    except (KeyError, TypeError):
        return None


def slug(name: str) -> str:
    """A name as a folder: unlike names stay unlike."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return plain if plain == name else f"{plain[-60:]}-{zlib.crc32(name.encode()):08x}"


def _write_json(file: Path, rows: Sequence[Row]) -> None:
    with write_atomically(file) as unfinished:
        unfinished.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
