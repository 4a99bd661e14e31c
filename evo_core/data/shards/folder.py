"""A folder of token shards: a sub-folder per data type, ``.bin`` files at any depth below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from evo_core.errors import DataError

SPLITS = ("train", "valid")
"""The parts of a dataset, each a folder of token shards: what is trained on, and what is held out."""

# The types of random data, as in InternEvo; only the first has samples.
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
    folders = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    types = tuple(sorted(entry.name for entry in folders if any(files_below(entry, ".bin"))))
    if not types:
        raise DataError(
            "there are no token files here",
            file=folder,
            hint="expected a folder per data type with .bin files, like cn/train_000.bin",
        )
    return types


def bin_files(folder: str | Path, data_type: str) -> list[Path]:
    """The ``.bin`` files of a type in InternEvo's order: those of a folder by name, then those of its sub-folders.

    Raises:
        DataError: there is none.
    """
    below = Path(folder) / data_type
    files = list(files_below(below, ".bin")) if below.is_dir() else []
    if not files:
        raise DataError(f"there are no .bin files of type {data_type}", file=below)
    return files


def files_below(folder: Path, ending: str, *, within: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files of a folder whose names end so, by name, then those of its sub-folders.

    Links are followed, but not back to a folder that leads to them. Hidden names are left out.

    Args:
        within: the folders that lead to this one.

    Raises:
        DataError: a folder cannot be read.
    """
    within |= {folder.resolve()}
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, entry.is_dir()) for entry in found if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"this folder cannot be read ({error.strerror})", file=folder) from None
    yield from (folder / name for name, is_folder in entries if not is_folder and name.endswith(ending))
    for name, is_folder in entries:
        if is_folder and (folder / name).resolve() not in within:
            yield from files_below(folder / name, ending, within=within)
