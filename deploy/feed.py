"""What a run is fed with: prompts, given answers and plain text, each from a cursor one can come back to."""

from __future__ import annotations
