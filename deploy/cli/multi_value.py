"""Options that take several values behind one flag: `--models A B` for `--models A --models B`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

SETTING = re.compile(r"[A-Za-z_][\w.]*=")


class ManyValues(TyperCommand):
    """A command whose list options take all that follows, up to the next flag or `key=value`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each of its values, then parse as ever."""
        flags = {flag for param in self.params if getattr(param, "multiple", False) for flag in param.opts}
        return super().parse_args(ctx, list(repeat_flags(args, flags)))


def repeat_flags(args: list[str], flags: set[str]) -> Iterator[str]:
    """`--models A B` as `--models A --models B`, for each of `flags`.

    A list ends at the next flag, at a `key=value` and at a YAML file. Raises BadParameter for a flag without
    a value.
    """
    flag, values = None, 0

    def end() -> None:
        if flag is not None and not values:
            raise typer.BadParameter(f"{flag} needs at least one value")

    for arg in args:
        if arg.startswith("-"):
            end()
            name, equals, value = arg.partition("=")
            flag, values = (name, int(bool(equals))) if name in flags else (None, 0)
            yield from (arg,) if flag is None else (flag, value) if equals else ()
        elif flag is not None and not _ends_list(arg):
            values += 1
            yield from (flag, arg)
        else:
            end()
            flag = None
            yield arg
    end()


def _ends_list(arg: str) -> bool:
    here = Path(arg)
    if SETTING.match(arg):
        return not here.exists()
    return here.suffix in (".yaml", ".yml") and here.is_file()
