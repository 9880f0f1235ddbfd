"""Measures every family against plain forwards of transformers, and writes the table of the documents.

    python -m minillm_ray.benchmarks.families            those of the table
    python -m minillm_ray.benchmarks.families --all      every family that AutoModelForCausalLM opens
    python -m minillm_ray.benchmarks.families NAME ...   these; the rest stays as it was

They are measured in another process, since a library may end it or never come back; the next one goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
PAGE = ROOT / "docs" / "reference" / "families.md"
BEGIN, END = "<!-- table of benchmarks/families.py -->", "<!-- end of the table -->"
COLUMNS = ("student", "teacher", "updates", "teacher of another", "scorer", "packed", "learner")
TIMEOUT = 150
EXACT = 1e-4
"""What counts as the same in float32."""

Row = dict[str, Any]


def measure(names: Sequence[str], folder: Path) -> Iterator[tuple[str, Row]]:
    """Each family with what could be measured of it, and how its process ended if that was not well."""
    waiting = list(names)
    while waiting:
        found: Row = {}
        for line in _lines(folder, waiting):
            if "family" in line and found:
                yield waiting.pop(0), _row(found, "")
            found = {**({} if "family" in line else found), **line}
        ended = "" if "made" in found and len(waiting) == 1 else str(found.get("ended") or "ends the process")
        yield waiting.pop(0), _row(found, ended)


def _lines(folder: Path, names: Sequence[str]) -> Iterator[Row]:
    """What the program that measures says, line by line, until it ends or says nothing for too long."""
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    with tempfile.TemporaryFile("w+") as errors:
        program = subprocess.Popen(
            [sys.executable, "-m", "minillm_ray.tests.family_gaps", str(folder), *names],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        assert program.stdout is not None
        alarm = threading.Timer(TIMEOUT, os.killpg, (program.pid, signal.SIGKILL))  # its engine with it
        alarm.start()
        for line in program.stdout:
            alarm.cancel()
            alarm = threading.Timer(TIMEOUT, os.killpg, (program.pid, signal.SIGKILL))
            alarm.start()
            if line.startswith("{"):
                yield json.loads(line.replace(f"{folder}/", ""))
        hangs = not alarm.is_alive()
        alarm.cancel()
        status = program.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
        if status:
            yield {"ended": "hangs" if hangs else f"ends the process ({status}): {last}"}


def _row(found: Row, ended: str) -> Row:
    made = found.get("made")
    missing = made if isinstance(made, str) else ended
    return {column: found.get(column, missing or None) for column in COLUMNS}


def exact(row: Row) -> bool:
    """Whether all parts agree; rows that a family cannot share are none."""
    return all((isinstance(v, float) and v < EXACT) or (v is None and c == "packed") for c, v in row.items())


def table(results: dict[str, Any]) -> str:
    """The table as markdown."""
    lines = [
        BEGIN,
        "Measured on {date} with transformers {transformers} and vLLM {vllm}.".format(**results),
        "",
        f"| family | {' | '.join(COLUMNS)} |",
        "| --- |" + " --- |" * len(COLUMNS),
    ]
    for name, row in results["families"].items():
        cells = [_cell(row.get(column)) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, END])


def _cell(value: Any) -> str:
    if value is None:
        return "a row each"
    if isinstance(value, str):
        return value.replace("|", "/")[:90]
    return f"{value:.0e}" if value < EXACT else f"**{value:.1g}**"


def main() -> None:
    """Measure, keep and write."""
    from ..tests.family_models import FAMILIES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = given.names or list(FAMILIES)
    if given.all:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        names = sorted({*FAMILIES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES})
    results: Row = json.loads(given.results.read_text()) if given.results.exists() else {"families": {}}
    vllm = next(name for name in metadata.packages_distributions()["vllm"])
    results |= {
        "date": datetime.date.today().isoformat(),
        "transformers": metadata.version("transformers"),
        "vllm": metadata.version(vllm),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, row in measure(names, Path(folder)):
            results["families"][name] = row
            print(name, "exact" if exact(row) else json.dumps(row), flush=True)
            given.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if given.results == RESULTS and PAGE.exists():
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(before + table(results) + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
