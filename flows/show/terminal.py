"""The terminal as pages see it: plain words stay plain, and there is always room for some."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

NARROWEST = 20
"""Columns below which the window's size is not believed: ``COLUMNS=0`` would print nothing."""


def console(**options: Any) -> Console:
    """A console that takes nothing in a text for an emoji or a number to colour."""
    told = os.environ.get("COLUMNS", "")
    if told and not (told.isdecimal() and int(told) >= NARROWEST):
        options.setdefault("width", 80)
    return Console(highlight=False, emoji=False, **options)
