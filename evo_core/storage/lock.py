"""Locks that the kernel lets go of when their holder dies, by `kill -9` too: of a file, by `flock`.

They save work, or keep two programs apart that know nothing of drafts; that a file is whole never hangs on one. Waiting
looks again and again, and asks in between whether to go on: a blocking `flock` would not hear that a run is to stop.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evo_core.storage.atomic import new_draft

_FIRST_LOOK, _LONGEST_LOOK = 0.002, 0.1


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file, or change the kind of one that is held; False where another holds it.

    Raises:
        OSError: this file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(descriptor: int, *, shared: bool = False, give_up: Callable[[], bool] = bool) -> bool:
    """`try_lock` until it succeeds; False where `give_up` said yes while another held it.

    Raises:
        OSError: this file system has no locks.
    """
    look = _FIRST_LOOK
    while not try_lock(descriptor, shared=shared):
        if give_up():
            return False
        time.sleep(look)
        look = min(2 * look, _LONGEST_LOOK)
    return True


@contextmanager
def locked(
    path: Path, *, give_up: Callable[[], bool] = bool, given_up: BaseException | None = None, must: bool = True
) -> Iterator[int]:
    """Hold the lock of a file, made if it is not there, for the block.

    Args:
        give_up: asked while another holds it; `bool`, the default, never does.
        given_up: raised when it said yes; `BlockingIOError` by default.
        must: without it a file system that has no locks is no error.

    Yields:
        The lock's descriptor: a child that inherits it holds the lock until it ends.

    Raises:
        given_up: another holds it, and `give_up` said yes.
        OSError: the file cannot be made, or its file system has no locks.
    """
    descriptor = _opened(path)
    try:
        try:
            held = wait_for_lock(descriptor, give_up=give_up)
        except OSError:
            if must:
                raise
            held = True
        if not held:
            raise given_up or BlockingIOError(f"another process holds {path}")
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """The descriptor of a lock's file, which may be another user's: whoever may read it may take its lock."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise error from None


@contextmanager
def sign_of_life(path: Path) -> Iterator[None]:
    """A file that is there for as long as the block runs, and after a kill is one that nobody holds (`is_held`)."""
    draft = new_draft(path)
    try:
        with locked(draft):  # seen from when the lock is held until just before it is let go
            draft.replace(path)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        draft.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of a file."""
    try:
        with path.open() as file:
            # without the file it ended just now, in good order: the file goes before its lock
            return not try_lock(file.fileno()) or not path.exists()
    except FileNotFoundError:  # the same, a moment earlier
        return True
