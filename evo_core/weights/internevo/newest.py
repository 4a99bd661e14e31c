"""Where the newest complete checkpoint lies in a save folder of InternEvo, told from the names of its files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

MODEL = re.compile(r"model_(?=[tw])(?:tp(?P<tensor>\d+)_)?(?:wp(?P<weight>\d+)_)?pp(?P<stage>\d+)\.pt")
FSDP = re.compile(r"model_tp\d+_pp\d+_dp\d+\.pt")
_STEP = re.compile(r"((?:snapshot/)?[^/]+)/(\d+)\.step")


def newest_of(names: Iterable[str]) -> str | None:
    """The folder that a folder of InternEvo's means, as a path below it.

    Args:
        names: of the files in it and in the folders below it, as paths.

    Returns:
        ``"."`` for a checkpoint; of a save folder its newest with a marker ``<step>.step``; None for any other folder.
    """
    complete = []
    for name in names:
        if MODEL.fullmatch(name) or FSDP.fullmatch(name):
            return "."
        if match := _STEP.fullmatch(name):
            complete.append((int(match[2]), match[1]))
    return max(complete)[1] if complete else None


def newest_below(folder: Path) -> Path | None:
    """The checkpoint itself, or the newest complete one in a save folder; None for any other folder."""
    if not folder.is_dir():
        return None
    paths = (*folder.iterdir(), *folder.glob("*/*.step"), *folder.glob("snapshot/*/*.step"))
    newest = newest_of(path.relative_to(folder).as_posix() for path in paths)
    return None if newest is None else folder / newest
