"""A store without room or rights, in the user's terms."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evo_core.errors import ConfigError

_HINTS = {
    errno.ENOSPC: "free some room, then run again: what is finished is kept",
    errno.EDQUOT: "your quota is used up: free some room, then run again: what is finished is kept",
    errno.EFBIG: "a limit on the size of files is set (ulimit -f)",
    errno.EROFS: "choose another store with --root or EVO_ROOT",
    errno.EACCES: "choose another store with --root or EVO_ROOT, or ask for the right to write there",
    errno.EPERM: "choose another store with --root or EVO_ROOT, or ask for the right to write there",
    errno.ENOTSUP: "choose another store with --root or EVO_ROOT",
    errno.ENOSYS: "choose another store with --root or EVO_ROOT",
    errno.ENOTDIR: "choose another store with --root or EVO_ROOT",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def storage_trouble(error: BaseException) -> str | None:
    """One line for an error of the file system that is the user's to mend, with the file and what to do; else None."""
    if not isinstance(error, OSError) or error.errno not in _HINTS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror} ({_HINTS[error.errno]})"


@contextmanager
def store_must_take(root: Path) -> Iterator[None]:
    """For what is written before any work.

    Raises:
        ConfigError: the store has no room for it, or it may not be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the store cannot be written: {error.strerror}",
            file=error.filename or root,
            key="--root",
            hint=_HINTS.get(error.errno or 0, "choose another store with --root or EVO_ROOT"),
        ) from error
