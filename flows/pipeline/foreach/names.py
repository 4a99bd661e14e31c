"""Names of the steps of a sweep: ``model-lr_3e-4-seed_1``.

A name follows from the row's own values, so that it stays when others are added; it is one that a step may have, so it
can be typed after --targets, and is a part of dotted keys. Nothing of an artifact depends on it.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evo_core.config.canonical_json import canonical_json

LONGEST_VALUE, LONGEST_NAME = 40, 150
"""Characters of a value, and bytes of a whole name, that are written out."""


def instance_names(step: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A name for each row; those that would be the same, or too long, end in a digest of their values."""
    names = [
        "-".join([step, *(f"{variable.lower()}_{_word(value)}" for variable, value in row.items())]) for row in rows
    ]
    count = Counter(names)
    return tuple(
        name if count[name] == 1 and len(name.encode()) <= LONGEST_NAME else f"{_cut(name)}-{_digest(row)}"
        for name, row in zip(names, rows, strict=True)
    )


def _word(value: Any) -> str:
    """A value as a part of a step's name."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value).lower()
        kept = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "-_" else "_" for c in text)
        return re.sub(r"_+", "_", kept)[:LONGEST_VALUE].strip("_") or _digest(value)
    return _digest(value)


def _number(value: float) -> str:
    """0.0003 as ``3e-4``, 0.1 as ``0_1``, 250000.0 as ``250000_0``."""
    text = repr(value)
    if value and math.isfinite(value) and not 0.01 <= abs(value) < 1e6:
        digits, _, exponent = f"{value:.16e}".partition("e")
        for places in range(17):
            if float(f"{value:.{places}e}") == value:
                digits, _, exponent = f"{value:.{places}e}".partition("e")
                break
        text = f"{digits}e{int(exponent)}"
    return text.replace(".", "_").replace("+", "")


def _cut(name: str) -> str:
    return name.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip("-_")


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:6]
