"""Which version of a dataset a folder of token shards is."""

from __future__ import annotations

from pathlib import Path

from evo_core.data.dataset.previous_version import STATISTICS
from evo_core.errors import DataError
from evo_core.storage.files import below, open_file
from evo_core.storage.location import Location, is_remote, local_path


def dataset_version(train_folder: Location) -> str:
    """The digest of the ``statistics.json`` beside a dataset's ``train/``, which names every shard with its digest.

    It is the one that an artifact's manifest has of that file.

    Returns:
        ``blake3:`` and hex digits.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    from blake3 import blake3

    with open_file(below(_dataset_of(train_folder), STATISTICS)) as file:
        return f"blake3:{blake3(file.read()).hexdigest()}"


def _dataset_of(train_folder: Location) -> Location:
    if not is_remote(train_folder):
        return Path(local_path(train_folder)).absolute().parent
    parent, _, name = str(train_folder).rstrip("/").rpartition("/")
    if not name or parent.endswith((":", "/")):
        raise DataError("a dataset's folder is above it, and this is a whole bucket", file=train_folder)
    return parent
