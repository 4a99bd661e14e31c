"""Whether a raw file is still the one that was listed, asked before and after it is read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from evo_core.errors import DataError
from evo_core.storage.location import is_remote
from tasks.raw.listing import RawFile, etag_of
from tasks.raw.selection import etag
from tasks.store.digests import DigestMemory

_THREADS = 16


class StillAsListed:
    """Checks files; a context manager, whose end waits for the checks that are under way.

    A local file is looked at for its size and modification time, and read again only if these say nothing. An object
    is asked for its ETag, many at a time, since a store takes milliseconds to answer.

    Raises:
        DataError: on `before`, or at the end, for a file that changed or is gone.
    """

    def __init__(self, inventory: Path) -> None:
        self._inventory = inventory
        self._memory: DigestMemory | None = None
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="unchanged")
        self._checks: list[Future[None]] = []

    def before(self, file: RawFile) -> None:
        """Look at a local file before work is spent on it."""
        if not is_remote(file.uri):
            self._check_local(file)

    def after(self, file: RawFile, accept: Callable[[], object]) -> None:
        """Look at a file that was read, and call `accept` if it is as it was listed; may return before."""
        if is_remote(file.uri):
            self._checks.append(self._pool.submit(_check_object, file, accept))
            return
        self._check_local(file)
        self._checks.append(self._pool.submit(lambda: (accept(), None)[1]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for check in self._checks:
                check.result()

    def _check_local(self, file: RawFile) -> None:
        if self._memory is None:
            self._memory = DigestMemory(self._inventory)
        path = Path(file.uri)
        if not path.exists() or self._memory.of(path).digest != file.digest:
            raise _changed(file)


def _check_object(file: RawFile, accept: Callable[[], object]) -> None:
    if etag(file.uri) != etag_of(file):
        raise _changed(file)
    accept()


def _changed(file: RawFile) -> DataError:
    return DataError(
        "this raw file is gone or changed since it was listed",
        file=file.uri,
        hint="run again; `settle:` of source.files leaves out files that are still being written",
    )
