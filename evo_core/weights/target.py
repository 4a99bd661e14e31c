"""The folder that converted weights go to: new or empty before, whole afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evo_core.errors import CheckpointError
from evo_core.storage import files as storage


def check_free(target: Path) -> None:
    """Refuse a place that is taken.

    Raises:
        CheckpointError: there is a file, or a folder with something in it.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise CheckpointError("is there already", file=target, hint="name a new or an empty folder")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name when the block ends well and is removed when it does not.

    Raises:
        CheckpointError: the place is taken, or cannot be written to.
    """
    target = target.absolute()
    check_free(target)
    try:
        with storage.new_folder(target) as draft:
            yield draft
    except OSError as error:
        if error.filename2 is not None:
            raise CheckpointError("is there already: it came while this was written", file=target) from error
        raise CheckpointError(f"cannot be written: {error.strerror or error}", file=target) from error
