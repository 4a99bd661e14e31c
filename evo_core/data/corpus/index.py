"""What a loader computes once and looks up for every batch: where documents lie, and the orders of documents and packs.

Each process keeps its own (`Index`), or the processes of a node share one (`SharedIndex`, ``data.use_shm``): the
first that needs an array computes it and writes it into a folder in memory, and the others map it. The folder's name
is a digest of all that the arrays depend on. Every process holds a lock on it while it runs; the last to leave removes
the folder, and folders that nobody holds any more, after a crash, are removed by the next run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from evo_core.errors import ConfigError
from evo_core.storage.atomic import clear_drafts
from evo_core.storage.files import delete, new_folder
from evo_core.storage.location import local_path
from evo_core.storage.lock import locked, try_lock, wait_for_lock

Arrays = Mapping[str, np.ndarray]
"""By name, of any shape and type: whoever makes them says which."""

_PREFIX = "evo-"
_IN_USE = "in-use.lock"


class Index:
    """Arrays by name, kept by whoever asked for them."""

    def arrays(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of that name; `make` computes them where they are not there yet."""
        return make()

    def forget(self, name: str) -> None:
        """Say that arrays of that name will not be asked for again."""

    def close(self) -> None:
        """Give back what is shared; arrays that were handed out stay valid."""


class Epochs:
    """Arrays for each epoch, or each part of one, of which the newest few are kept; several threads may ask.

    Args:
        index: where they are kept.
        name: of the arrays.
        make: computes those of an epoch, or of the part of it that is numbered so.
        kept: how many are in use at a time.
    """

    def __init__(self, index: Index, name: str, make: Callable[..., Arrays], *, kept: int) -> None:
        self._index, self._name, self._make, self._kept = index, name, make, kept
        self._held: OrderedDict[tuple[int, ...], Arrays] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, epoch: int, *part: int) -> Arrays:
        key = epoch, *part
        with self._lock:
            if key not in self._held:
                self._held[key] = self._index.arrays(self._named(key), lambda: self._make(*key))
                if len(self._held) > self._kept:
                    old, _ = self._held.popitem(last=False)
                    self._index.forget(self._named(old))
            self._held.move_to_end(key)
            return self._held[key]

    def _named(self, key: tuple[int, ...]) -> str:
        return "-".join([self._name, *map(str, key)])


class SharedIndex(Index):
    """Arrays that all processes of this machine with the same key share.

    Args:
        root: a folder, best one in memory; made if it is not there.
        key: a digest of all that the arrays depend on.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(self, root: str | Path, key: str) -> None:
        root = local_path(root)
        try:
            _make_root(root)
            _sweep(root)
            self.folder = root / f"{_PREFIX}{os.getuid()}-{key}"  # two users may read the same data alike
            self._hold = _hold(self.folder)
        except OSError as error:
            raise ConfigError(
                f"no index can be kept in {root} ({error.strerror})",
                key="data.shm_path",
                hint="name a folder in memory that every rank can write to, or set data.use_shm to false",
            ) from error
        self._finalizer = weakref.finalize(self, _leave, self.folder, self._hold, os.getpid())

    def arrays(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        folder = self.folder / name.replace("/", "%")
        while True:
            if not folder.is_dir():
                with locked(self.folder / f"{folder.name}.lock"):
                    if not folder.is_dir():
                        write_arrays(folder, make())
            # Another process may be an epoch further and have forgotten it just now.
            with contextlib.suppress(FileNotFoundError):
                return {path.stem: mapped(path) for path in folder.iterdir()}

    def forget(self, name: str) -> None:
        # Whoever still maps the arrays keeps them; whoever asks again computes them again.
        delete(self.folder / name.replace("/", "%"))

    def close(self) -> None:
        self._finalizer()


def _make_root(root: Path) -> None:
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            root.chmod(0o1777)  # as /tmp: the next user of this machine shares the root, not what is in it


def _hold(folder: Path) -> int:
    """A shared lock on a folder, made if need be, as the open file that has it."""
    path = folder / _IN_USE
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile, by the last of those who held it
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(errno.EACCES, f"{folder} is another user's")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            wait_for_lock(descriptor, shared=True)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            os.close(descriptor)


def _leave(folder: Path, descriptor: int, holder: int) -> None:
    """Let go of the folder, and remove it where nobody else holds it."""
    if os.getpid() != holder:
        return  # a fork of the holder, which shares its lock
    try:
        if try_lock(descriptor):
            delete(folder)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _sweep(root: Path) -> None:
    """Remove the folders that processes left when they were killed."""
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            _leave(folder, os.open(folder / _IN_USE, os.O_RDWR), os.getpid())
    clear_drafts(root)  # whoever was killed while it removed one


def write_arrays(folder: Path, arrays: Arrays) -> None:
    """Put arrays into a new folder, which appears complete; `mapped` reads each.

    Raises:
        OSError: it cannot be written, or is there already.
    """
    with new_folder(folder, durable=False) as draft:
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array, allow_pickle=False)


def mapped(path: Path) -> np.ndarray:
    """An array that `write_arrays` put into a folder, mapped into memory.

    Raises:
        OSError: it is not there.
        ValueError: it is none, or shorter than it says.
    """
    # As plain arrays, which slice five times as fast as np.memmap; an empty file cannot be mapped.
    return np.asarray(np.load(path, mmap_mode="r" if path.stat().st_size > 4096 else None, allow_pickle=False))
