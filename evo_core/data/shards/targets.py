"""Whether there is anything to train on, or to predict, in token files.

A token is a target where its id is not negative, but never the first of a document, which nothing comes before.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from evo_core.data.shards.folder import bin_files, data_types
from evo_core.data.shards.format import BinReader

NO_TARGETS = "not a single token is trained on: negative ids are only read, and nothing comes before a document's first"

NONE_YET = "the first batch holds no token to train on"


def has_targets(paths: Iterable[Path]) -> bool:
    """Whether there is a target in some ``.bin`` files; they are read up to the first.

    Raises:
        DataError: a file is damaged.
    """
    readers = map(BinReader, paths)
    return any((reader.tokens(number)[1:] >= 0).any() for reader in readers for number in range(len(reader)))


def types_without_targets(folder: Path) -> list[str]:
    """The data types of a folder that have none.

    Raises:
        DataError: there is no data, or a file is damaged.
    """
    return [name for name in data_types(folder) if not has_targets(bin_files(folder, name))]
