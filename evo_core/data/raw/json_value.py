"""One JSON value: by the fast reader, and where that refuses by Python's own, which tools in Python write for."""

from __future__ import annotations

import json
from typing import Any

import orjson

HALF_CHARACTER = "half a character (an escape like \\ud800 without its other half)"


def parse(text: bytes | str) -> Any:
    """The value. ``NaN``, ``Infinity``, numbers of any size and half a surrogate pair are read as Python reads them.

    Raises:
        ValueError: it is not JSON, or not UTF-8.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(text.decode() if isinstance(text, bytes) else text)
        except (ValueError, RecursionError):
            raise error from None


def is_whole(text: str) -> bool:
    """Whether a text is characters alone, which a half of a surrogate pair is not."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
