"""Weights in an object store: which folder is meant there, and its copy on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evo_core.checkpoint import folder as folders
from evo_core.errors import CheckpointError, DataError
from evo_core.storage.files import below, file_exists, file_sizes, list_files
from evo_core.storage.location import Location, is_remote, local_path
from evo_core.storage.stage import stage
from evo_core.weights.internevo.newest import newest_below, newest_of

ABOVE = "tokenizer.model"
"""What Meta puts beside the folders of its models: one tokenizer for all."""

_OPTIMIZER_OF_INTERNEVO = re.compile(r"optimizer_(?:tp|wp|ep)\d+_.*\.pt")
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
    if newest is None and (theirs := newest_of(names)):
        return f"{uri.rstrip('/')}/{theirs}".removesuffix("/.")
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
        whole: with the states of the optimizer, which are most of a checkpoint of ours. InternEvo's are never read.

    Raises:
        CheckpointError: as `folder_in_store`; or there is no room for it.
    """
    with _store_errors():
        return stage(folder_in_store(uri), wanted=lambda path: _is_read(path, whole), beside=(ABOVE,))


def newest_internevo(folder: Location) -> Location | None:
    """The checkpoint of InternEvo that a folder on disk or in a store means: itself, or its newest complete one.

    Returns:
        None where it holds none.

    Raises:
        CheckpointError: the store cannot be asked.
    """
    if isinstance(folder, Path) or not is_remote(folder):
        return newest_below(local_path(folder))
    with _store_errors():
        newest = newest_of(file_sizes(folder))  # a save folder may be empty yet
    return None if newest is None else f"{folder.rstrip('/')}/{newest}".removesuffix("/.")


def _is_read(path: str, whole: bool) -> bool:
    """Whether a file of a folder is read: states of InternEvo's optimizer never are, and of ours only with `whole`."""
    return not _OPTIMIZER_OF_INTERNEVO.fullmatch(path) and (whole or not path.startswith("optimizer/"))


@contextmanager
def _store_errors() -> Iterator[None]:
    """What a store says of data is said of a checkpoint here."""
    try:
        yield
    except DataError as error:
        raise CheckpointError(error.message, file=error.file, hint=error.hint) from error
