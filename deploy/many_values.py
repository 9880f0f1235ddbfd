"""Options that take several values behind one flag: `--models A B` for `--models A --models B`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

SETTING = re.compile(r"[A-Za-z_][\w.]*=")


class ManyValues(TyperCommand):
    """A command whose list options take all that follows, up to the next flag or `key=value`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each of its values, then parse as ever."""
        flags = {flag for param in self.params if getattr(param, "multiple", False) for flag in param.opts}
        return super().parse_args(ctx, list(spread(args, flags)))


def spread(args: list[str], flags: set[str]) -> Iterator[str]:
    """`--models A B` as `--models A --models B`, for each of `flags`."""
    flag = None
    for n, arg in enumerate(args):
        if arg.startswith("-"):
            flag = arg if arg in flags else None
            alone = n + 1 == len(args) or args[n + 1].startswith("-")
            if flag is None or alone:  # a list flag without a value is told by the parser
                yield arg
        elif flag is not None and not (SETTING.match(arg) and not Path(arg).exists()):
            yield from (flag, arg)
        else:
            flag = None
            yield arg
