"""One text for equal plain data, for digests of it."""

from __future__ import annotations

import json
import math
from typing import Any


def canonical_json(value: Any) -> str:
    """The one JSON text of plain data: sorted keys, no blanks, shortest floats; 1.0 and 1 are the same number.

    Raises:
        TypeError: anything that is not None, bool, int, float, str, list or a dict with str keys. Silence here would
            mean wrong reuse later.
        ValueError: NaN. An infinity is written as the string ".inf" or "-.inf".
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any, at: str = "$") -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if math.isnan(value):
            raise ValueError(f"NaN at {at} cannot be part of an identity")
        if math.isinf(value):
            return ".inf" if value > 0 else "-.inf"
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if type(value) in (list, tuple):
        return [_plain(item, f"{at}[{i}]") for i, item in enumerate(value)]
    if type(value) is dict:
        for name in value:
            if type(name) is not str:
                raise TypeError(f"key {name!r} at {at} is no string")
        return {name: _plain(item, f"{at}.{name}") for name, item in value.items()}
    raise TypeError(f"{type(value).__name__} at {at} is not plain data")
