"""Where a command's results go: looked at before the work, and named where they cannot be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evo_core.errors import ConfigError


@contextmanager
def writing(path: Path, key: str) -> Iterator[None]:
    """What the system refuses in the block is an error that names the path and the setting it comes from.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", file=path, key=key) from error


def make_folder(folder: Path, key: str) -> None:
    """Make a folder, and see that files can be written into it.

    Raises:
        ConfigError: they cannot.
    """
    probe = folder / f".probe.{os.getpid()}"
    with writing(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
