"""What a test does on a machine that lacks something it needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(what: str, reason: str) -> NoReturn:
    """Skip the test for want of `what`; where MINILLM_REQUIRE names it (a,b,c) that is a failure."""
    if what in os.environ.get("MINILLM_REQUIRE", "").split(","):
        pytest.fail(f"{reason} (MINILLM_REQUIRE names {what})")
    pytest.skip(reason)
