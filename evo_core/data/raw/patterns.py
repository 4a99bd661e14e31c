"""Patterns of paths: ``*`` and ``?`` stay within a name, ``**`` is any number of folders, as `pathlib` has them.

A pattern that ends in ``**`` means every file below. Its ending, like ``.jsonl.gz``, fits in any case.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAGIC = re.compile(r"[*?[]")
_ENDING = re.compile(r"(?:\.\w+)+$")


@lru_cache
def any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """What matches a path, with forward slashes, that fits one of the patterns; of none, nothing."""
    return re.compile("|".join(f"(?:{_expression(pattern)})" for pattern in patterns) or r"(?!)", re.DOTALL)


def split_pattern(path: str) -> tuple[str, str]:
    """The folder before a pattern, ending in a slash unless it is none, and the pattern below it.

    The pattern is empty where the path has no ``*``, ``?`` or ``[``.
    """
    found = MAGIC.search(path)
    if found is None:
        return path, ""
    start = path.rfind("/", 0, found.start()) + 1
    return path[:start], path[start:]


def depth_of(pattern: str) -> int | None:
    """How many parts a path that fits can have; None for any number."""
    parts = pattern.split("/")
    return None if "**" in parts else len(parts)


def _expression(pattern: str) -> str:
    """A pattern as a regular expression."""
    *folders, name = pattern.split("/")
    parts = ["(?:[^/]+/)*" if folder == "**" else f"{_of_name(folder)}/" for folder in folders]
    if name == "**":
        return "".join(parts) + ".*"
    ending = _ENDING.search(name)
    if ending is not None:
        name = name[: ending.start()]
    return "".join(parts) + _of_name(name) + (f"(?i:{re.escape(ending[0])})" if ending else "")


def _of_name(pattern: str) -> str:
    parts = re.split(r"(\*+|\?|\[!?\]?[^\]]*\])", pattern)
    return "".join(_of_part(part) for part in parts)


def _of_part(part: str) -> str:
    if part.startswith("*"):
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if len(part) > 2 and part.startswith("[") and part.endswith("]"):
        body = part[1:-1].replace("\\", "\\\\").replace("[", "\\[")
        return f"(?![/])[^{body[1:]}]" if body.startswith("!") else f"(?![/])[{body}]"
    return re.escape(part)
