"""The raw files of a pipeline: those of the one listing that the step's patterns take."""

from __future__ import annotations

from collections.abc import Sequence

from evo_core.data.raw.listing import Listing, list_folder
from evo_core.data.raw.patterns import any_of
from evo_core.errors import ConfigError, DataError, printable
from evo_core.storage.files import file_info
from evo_core.storage.listed import Listed
from evo_core.storage.location import is_remote, local_path

UNMATCHED = "not matched"


def list_files(root: str, include: Sequence[str], exclude: Sequence[str] = ()) -> Listing:
    """The files below `root` that match one of `include` and none of `exclude`, by path.

    Raises:
        ConfigError: there is no such folder or bucket, it cannot be read from here, or a file that is taken has a name
            that cannot be written down.
    """
    if not is_remote(root) and not local_path(root).exists():
        raise ConfigError(f"the raw folder {root} does not exist", key="root", hint="make it, or change the path")
    wanted, unwanted = any_of(tuple(include)), any_of(tuple(exclude))

    def is_taken(file: Listed) -> bool:
        path = "/".join(part for part in file.path.split("/") if part)
        return bool(wanted.fullmatch(path)) and not unwanted.fullmatch(path)

    try:
        found = list_folder(root if is_remote(root) else local_path(root).absolute())
        listing = found.only(is_taken, UNMATCHED).check_names()
    except DataError as error:
        raise ConfigError(f"{printable(error.file or root)}: {error.message}", key="root", hint=error.hint) from None
    if is_remote(root) and not all(file.tag for file in listing.files):
        raise ConfigError(f"{root} does not say what its objects hold (no ETag)", key="root", hint="use s3://")
    return listing


def etag(uri: str) -> str | None:
    """The ETag that an object has now; None if it is gone.

    Raises:
        DataError: the store does not answer.
    """
    try:
        return file_info(uri).tag
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
