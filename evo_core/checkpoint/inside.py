"""Names of files that another file gives: only those in its own folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from evo_core.errors import CheckpointError
from evo_core.storage.location import Location


def inside(folder: Path, name: Any, *, file: Location) -> Path:
    """The path of a name in a folder. It may be a link: a hub's cache keeps the files themselves elsewhere.

    Args:
        file: what gives the name.

    Raises:
        CheckpointError: it is no name, or one that leaves the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise CheckpointError(f"{name!r} is not the name of a file", file=file)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or PureWindowsPath(name).drive:
        raise CheckpointError(f"{name!r} is not in this folder: nothing outside of it is read", file=file)
    return folder / path
