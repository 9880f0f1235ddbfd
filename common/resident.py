"""How much memory a process has held."""

from __future__ import annotations

import re
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_resident(_: object = None) -> int:
    """Most bytes that this process has had in memory at a time, or 0 where the system does not say.

    Pages that are shared with others, such as weights in the object store, count in each. Takes and ignores
    an actor, so that Ray can run it inside one.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return int(found[1]) * 1024 if found else 0
