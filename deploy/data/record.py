"""What a run keeps of its data, in fingerprint.json: the time that templates were told, and a fingerprint.

A run that is resumed tomorrow reads what it read today, or is told from which record on it does not.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import ABSENT, DataError, Fault
from ...common.process import write_atomically
from ...common.types import Passage, Prompt

FILE = "fingerprint.json"
"""Below the folder of a run, a generation or an evaluation."""
Items = Sequence[Prompt] | Sequence[Passage]


def start_time(folder: Path) -> datetime:
    """When the work in `folder` was begun; now, to the second, if nothing was."""
    kept = _read(folder)
    return datetime.fromisoformat(kept["started"]) if kept else datetime.now().replace(microsecond=0)


def keep_record(folder: Path, started: datetime, sets: Mapping[str, Items]) -> None:
    """Write down what a run reads; `sets` are its prompts and passages by the setting that they come from."""
    content = {
        "started": started.isoformat(),
        "sets": {key: _as_json(fingerprint(items)) for key, items in sets.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / FILE) as file:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def refuse_other_data(folder: Path, sets: Mapping[str, Items], way_out: str) -> None:
    """Raise DataError, naming the first record, where these are not the tokens that work was begun with.

    Sets that were not kept are not compared.
    """
    kept = _read(folder)
    faults = []
    for key, items in sets.items():
        before = (kept or {}).get("sets", {}).get(key)
        if before is None:
            continue
        then = np.frombuffer(base64.b64decode(before["records_crc32"]), "<u4")
        now = fingerprint(items)
        size = min(len(now), len(then))
        differ = np.flatnonzero(now[:size] != then[:size])
        first = int(differ[0]) if len(differ) else size
        if first == len(now) == len(then):
            continue
        which = (
            f"first in {_name(items[first])}"
            if first < len(now)
            else f"{len(now)} records in place of {len(then)}"
        )
        reason = f"differs from what the work in {folder} was begun with, {which}"
        faults.append(Fault(key.partition(" ")[0], ABSENT, reason, way_out))
    if faults:
        raise DataError(*faults)


def fingerprint(items: Items) -> npt.NDArray[np.uint32]:
    """A checksum of each item's name, tokens and right answers, [N]."""
    return np.fromiter((_checksum(item) for item in items), np.uint32, len(items))


def _checksum(item: Prompt | Passage) -> int:
    if isinstance(item, Prompt):
        found = zlib.crc32(item.token_ids.tobytes(), zlib.crc32(item.id.encode()))
        return zlib.crc32("\0".join(item.references).encode(), found)
    found = zlib.crc32(item.prompt_ids.tobytes(), zlib.crc32(item.prompt_id.encode()))
    return zlib.crc32(item.answer_ids.tobytes(), found)


def _name(item: Prompt | Passage) -> str:
    return item.id if isinstance(item, Prompt) else item.prompt_id


def _as_json(checksums: npt.NDArray[np.uint32]) -> dict[str, object]:
    content = checksums.astype("<u4").tobytes()
    return {
        "records": len(checksums),
        "crc32": f"{zlib.crc32(content):08x}",
        "records_crc32": base64.b64encode(content).decode("ascii"),
    }


def _read(folder: Path) -> dict[str, Any] | None:
    file = folder / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
