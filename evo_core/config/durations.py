"""Durations as people and Slurm write them: 90, 90s, 15m, 48h, 2d, 01:30:00, 2-00:00:00."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

from evo_core.config.types import describe

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> float:
    """The duration in seconds.

    Raises:
        ValueError: it is none of the forms above.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text):
        return float(match[1]) * UNITS.get(match[2], 1.0)
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    raise ValueError(f"{text!r} is no duration: write 90s, 15m, 48h, 2d or 01:30:00")


Duration = Annotated[float, BeforeValidator(seconds)]
"""A pydantic field in seconds."""


def _limit(value: object) -> float | None:
    """The duration in seconds, above 0; None where there is no limit."""
    if value is None:
        return None
    if isinstance(value, bool) or not 0 < (duration := seconds(value)) < float("inf"):
        raise ValueError(f"{describe(value)} is no duration above 0: write 90s, 15m, 48h, 2d, 01:30:00 or null")
    return duration


OptionalDuration = Annotated[float | None, BeforeValidator(_limit)]
"""The same for a limit: above 0, or None for none."""
