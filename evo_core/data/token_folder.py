"""A folder of token shards: a sub-folder per data type, ``.bin`` files at any depth below it."""

from __future__ import annotations

import os
from pathlib import Path

from evo_core.errors import DataError

# The types of random data, as in the original; only the first has samples.
RANDOM_TYPES = ("en", "cn", "code")


def data_types(folder: str | Path | None) -> tuple[str, ...]:
    """The data types of a folder, sorted: their positions are the type ids. None stands for random data.

    Raises:
        DataError: there is no such folder, no type in it, or a ``.bin`` beside the types.
    """
    if folder is None:
        return RANDOM_TYPES
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("there is no such data folder", file=folder)
    stray = next(folder.glob("*.bin"), None)
    if stray is not None:
        raise DataError(
            "a .bin lies beside the data types", file=stray, hint="put it into a folder named by its type, like cn/"
        )
    types = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _bin_files(entry)))
    if not types:
        raise DataError(
            "there are no token files here",
            file=folder,
            hint="expected a folder per data type with .bin files, like cn/train_000.bin",
        )
    return types


def bin_files(folder: str | Path, data_type: str) -> list[Path]:
    """The ``.bin`` files of a type, sorted by path.

    Raises:
        DataError: there is none.
    """
    files = _bin_files(Path(folder) / data_type)
    if not files:
        raise DataError(f"there are no .bin files of type {data_type}", file=Path(folder) / data_type)
    return files


def _bin_files(folder: Path) -> list[Path]:
    return sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(".bin") and not name.startswith(".")
    )
