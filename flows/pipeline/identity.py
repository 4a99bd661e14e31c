"""What makes an artifact that artifact and no other: the key.

``key = sha256(canonical JSON of {kind, version, params, inputs})``. Parameters come from the kind, without those at
the value they were introduced with; an input is its upstream key; a source is the digest of what is there. Where a
step runs, in how many processes, under which root and when is never part of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

SCHEMA = 1
"""Raised when the way keys are made changes; every key then changes."""


def identity(
    kind: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, str], source: str | None = None
) -> dict[str, Any]:
    """The payload of a key.

    Args:
        params: identity parameters as plain data.
        inputs: input name to the key of the artifact there.
        source: digest of what a source found.
    """
    payload: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": kind,
        "version": version,
        "params": dict(params),
        "inputs": dict(inputs),
    }
    if source is not None:
        payload["source"] = source
    return payload


def key(payload: Mapping[str, Any]) -> str:
    """sha256 of the payload's canonical JSON, 64 hex digits; people are shown the first 12."""
    return hashlib.sha256(canonical_json(payload).encode()).hexdigest()


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
