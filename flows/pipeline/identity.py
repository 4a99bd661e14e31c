"""What makes an artifact that artifact and no other: the key.

``key = sha256(canonical JSON of {kind, version, params, inputs})``. Parameters come from the kind, without those at
the value they were introduced with; an input is its upstream key; a source is the digest of what is there. Where a
step runs, in how many processes, under which root and when is never part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from evo_core.config.canonical_json import canonical_json

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
