"""All of Ray that is not for everybody's use, under names of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...common import compat

LIBRARY = "ray"

_CALL = "ray.actor.ActorHandle.__ray_call__"

ON_INSTANCES: tuple[str, ...] = (_CALL,)
"""What of `REQUIRED` only objects have: each is looked for on the object, when it is there."""
REQUIRED: tuple[str, ...] = ON_INSTANCES


def call_inside(actor: Any, function: Callable[[Any], Any]) -> Any:
    """Reference of what a function gives inside an actor, which it is handed."""
    return compat.member(LIBRARY, actor, _CALL).remote(function)
