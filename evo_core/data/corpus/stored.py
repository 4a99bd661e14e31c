"""An index that outlives the processes that use it: found out once in the life of the files, mapped ever after.

It lies in the machine's cache (``$EVO_CACHE/corpora``), in a folder named by a digest of all that it depends on. A
folder appears complete, with a checksum that is compared when it is opened; it can be deleted at any time, and is when
nobody has used it for a month.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from evo_core.data.corpus.index import Arrays, Index, mapped, write_arrays
from evo_core.storage.atomic import clear_drafts
from evo_core.storage.cache import cache_folder, mark_in_use
from evo_core.storage.files import delete
from evo_core.storage.lock import locked

log = logging.getLogger(__name__)

_KEEP_DAYS = 30
_CHECKSUM = "checksum"


class StoredIndex(Index):
    """Arrays that stay in the cache of this machine.

    Args:
        key: a digest of all that they depend on.
    """

    def __init__(self, key: str) -> None:
        self._root, self._key = cache_folder("corpora"), key

    def holds(self, name: str) -> bool:
        """Whether the arrays of that name are there, as far as a look at the folder tells."""
        return self._folder(name).is_dir()

    def arrays(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        folder = self._folder(name)
        if (found := _opened(folder)) is not None:
            return found
        with contextlib.ExitStack() as stack:
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder.with_suffix(".lock"), must=False))
            except OSError as error:
                self._warn(error)
                return make()
            if (found := _opened(folder)) is not None:
                return found
            self._clear()
            arrays = make()  # whose own errors are none of the cache's
            try:
                if _opened(folder) is None:  # where nothing can be locked, another may have made it meanwhile
                    _write(folder, arrays)
            except OSError as error:
                if _opened(folder) is None:
                    self._warn(error)
            return arrays

    def _warn(self, error: OSError) -> None:
        log.warning("no index can be kept in %s (%s): it is made again at every start", self._root, error)

    def _folder(self, name: str) -> Path:
        return self._root / f"{self._key}-{name}"

    def _clear(self) -> None:
        """Remove what nobody has used for a month, and what a killed process left."""
        oldest = time.time() - _KEEP_DAYS * 86400
        for folder in self._root.glob("*"):
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < oldest:
                    delete(folder)
        clear_drafts(self._root)


def _write(folder: Path, arrays: Arrays) -> None:
    if folder.exists():
        log.warning("the index %s was damaged, and is made again", folder)
        delete(folder)
    write_arrays(folder, {**arrays, _CHECKSUM: _checksum(arrays)})


def _opened(folder: Path) -> Arrays | None:
    """The arrays of a folder; None where it is not there or holds something else than was written."""
    if not folder.is_dir():
        return None
    mark_in_use(folder)
    try:
        arrays = {path.stem: mapped(path) for path in folder.iterdir()}
    except (OSError, ValueError, EOFError):  # numpy's, for a file cut off somewhere or at its start
        return None
    stored = arrays.pop(_CHECKSUM, None)
    return arrays if stored is not None and np.array_equal(stored, _checksum(arrays)) else None


def _checksum(arrays: Arrays) -> np.ndarray:
    """Of names, types, shapes and numbers, uint8 [16]."""
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data if array.size else b"")
    return np.frombuffer(digest.digest(), np.uint8)
