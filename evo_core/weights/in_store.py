"""Weights in an object store: which folder is meant there, and its copy on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evo_core.checkpoint import folder as folders
from evo_core.errors import CheckpointError, DataError
from evo_core.storage.files import below, file_exists, list_files
from evo_core.storage.stage import stage

_OURS = re.compile(rf"(?:{folders.SNAPSHOTS}/)?\d+(?:-\d+)?/.*")


def folder_in_store(uri: str) -> str:
    """The folder of weights that a location in a store means: itself, or the newest complete checkpoint in it.

    Raises:
        CheckpointError: there is none, or the store cannot be asked.
    """
    with _store_errors():
        names = [file.path for file in list_files(uri, lambda *what: None)]
        if folders.MANIFEST in names or not any(map(_OURS.fullmatch, names)):
            return uri
        newest = folders.newest_complete(uri)
    if newest is None:
        message = f"no complete checkpoint here: no folder <step>/{folders.MANIFEST}"
        raise CheckpointError(message, file=uri)
    return str(newest)


def is_own(folder: str) -> bool:
    """Whether a folder in a store is a checkpoint of ours, which is read from there.

    Raises:
        CheckpointError: the store cannot be asked.
    """
    with _store_errors():
        return file_exists(below(folder, folders.MANIFEST))


def copy_of(uri: str, *, whole: bool) -> Path:
    """The copy on this machine of the folder of weights that a location in a store means.

    Args:
        whole: with the states of the optimizer, which are most of a checkpoint of ours.

    Raises:
        CheckpointError: as `folder_in_store`; or there is no room for it.
    """
    with _store_errors():
        return stage(folder_in_store(uri), wanted=lambda path: whole or not path.startswith("optimizer/"))


@contextmanager
def _store_errors() -> Iterator[None]:
    """What a store says of data is said of a checkpoint here."""
    try:
        yield
    except DataError as error:
        raise CheckpointError(error.message, file=error.file, hint=error.hint) from error
