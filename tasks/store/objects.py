"""Objects of the store: the tokens of one raw file, shared by every dataset that holds it."""

from __future__ import annotations

from pathlib import Path

from evo_core.errors import DataError
from tasks.store.json_file import read_object


def is_whole(folder: Path, done: str) -> bool:
    """Whether an object is complete, and its token files are there and belong to their metas.

    Args:
        done: the name of the file that is written last.
    """
    from evo_core.data.shards.format import BinReader

    try:
        readers = [BinReader(path) for path in folder.rglob("*.bin")]
        return bool(readers) and read_object(folder / done) is not None
    except (DataError, OSError):
        return False
