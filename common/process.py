"""How much memory a process has held."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_resident(_: object = None) -> int:
    """Most bytes that this process has had in memory at a time, or 0 where the system does not say.

    Pages that are shared with others, such as weights in the object store, count in each. Takes and ignores
    an actor, so that Ray can run it inside one.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return int(found[1]) * 1024 if found else 0


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search for garbage while libraries are imported.

    An import makes hundreds of thousands of objects that stay; to look through them again and again takes a
    fifth of its time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
