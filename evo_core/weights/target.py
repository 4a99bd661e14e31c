"""Folders that appear whole: written under a hidden name beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evo_core.errors import CheckpointError


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
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror}", file=target) from error
    try:
        yield draft
        _sync(draft)
        draft.rename(target)  # onto nothing, or onto an empty folder
        _sync(target.parent)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and error.filename2 is not None:
            raise CheckpointError("is there already: it came while this was written", file=target) from error
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot be written: {error.strerror or error}", file=target) from error
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
