"""Token ids of ``.bin`` files as flat arrays.

JSON is too slow to parse again for every batch. So a folder's files are decoded once: small folders into
memory, larger ones into binary twins, flat files that all processes of a machine map into memory: a header, the
ids as int32, and a hash of each document. Twins live in a cache folder (``$EVO_CACHE``, else
``$XDG_CACHE_HOME/evo``, else ``~/.cache/evo``), are named by a digest of the file they stand for, and can be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from evo_core.data.format import BinReader, meta_path

log = logging.getLogger(__name__)

# Folders below this size (bytes of .bin) are decoded into memory, in about a second.
IN_MEMORY_BYTES = 64 << 20

_HEADER = struct.Struct("<8sqqq40x")  # magic, tokens, documents, largest absolute id
_MAGIC = b"EVOTOK02"
_KEEP_DAYS = 30
_END_BYTES = 64 << 10


class Content(NamedTuple):
    """Ids, hashes and the largest absolute id of a file, as `TokenFile` has them."""

    ids: np.ndarray
    hashes: np.ndarray
    max_id: int


class TokenFile:
    """The documents of one ``.bin`` behind each other.

    Attributes:
        path: the ``.bin``.
        starts: int64 [documents + 1], where each document starts in `ids`, and the end.
        ids: int32 [tokens], in memory or memory-mapped; negative ids are context.
        hashes: uint64 [documents], of each document's ids.
        max_id: the largest absolute id; -1 where there is no token.
        twin: the file that `ids` is mapped from; None where they are in memory.
    """

    def __init__(self, reader: BinReader, content: Content, twin: Path | None = None) -> None:
        self.path = reader.path
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(reader.lengths)])
        self.ids, self.hashes, self.max_id = content
        self.twin = twin

    def __len__(self) -> int:
        return len(self.starts) - 1

    def check(self, vocab_size: int) -> None:
        """Require every id to be below `vocab_size`.

        Raises:
            DataError: naming file, line and id.
        """
        if self.max_id >= vocab_size:
            BinReader(self.path).check(vocab_size)


def open_token_files(paths: Sequence[Path], *, first: int = 0, in_memory: bool = True) -> list[TokenFile]:
    """Open ``.bin`` files, decoding those that no process of this machine has decoded before.

    Many processes may do this at the same time: each twin is decoded by one of them, the others wait for it.

    Args:
        paths: the files.
        first: which of them to decode first; processes that start together share the work when each gives
            its rank.
        in_memory: False makes twins of small folders too.

    Raises:
        DataError: a file is damaged.
    """
    readers = [BinReader(path) for path in paths]
    if in_memory and sum(path.stat().st_size for path in paths) <= IN_MEMORY_BYTES:
        return [TokenFile(reader, _decoded(reader)) for reader in readers]
    cache = _cache_folder()
    twins = [cache / f"{file_digest(reader.path)}.tokens" for reader in readers]
    with _pruning(cache, twins):
        turn = first % max(len(readers), 1)
        for number in [*range(turn, len(readers)), *range(turn)]:
            _make_twin(readers[number], twins[number], wait=False)
        return [_open_twin(reader, twin) for reader, twin in zip(readers, twins, strict=True)]


def map_twin(twin: Path) -> Content:
    """What a complete twin holds, mapped into memory.

    Raises:
        OSError: it is not there.
    """
    with twin.open("rb") as file:
        _, tokens, documents, max_id = _HEADER.unpack(file.read(_HEADER.size))
    # As plain arrays, which slice five times as fast as np.memmap.
    mapped = np.asarray(np.memmap(twin, np.uint8, "r"))
    split = _HEADER.size + 4 * tokens
    hashes = mapped[split : split + 8 * documents].view(np.uint64)  # at no multiple of 8 bytes, which numpy copes with
    return Content(mapped[_HEADER.size : split].view(np.int32), hashes, max_id)


def file_digest(path: Path) -> str:
    """A cheap digest of a ``.bin``: its size, when it was changed, its meta and both its ends."""
    stat = path.stat()
    digest = xxhash.xxh3_128(struct.pack("<qq", stat.st_size, stat.st_mtime_ns))
    digest.update(meta_path(path).read_bytes())
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, stat.st_size - _END_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


def _decoded(reader: BinReader) -> Content:
    ids = np.empty(int(reader.lengths.sum()), np.int32)
    hashes = np.empty(len(reader), np.uint64)
    at, max_id = 0, -1
    for number, (document, largest) in enumerate(_documents(reader)):
        ids[at : at + len(document)] = document
        at += len(document)
        hashes[number] = xxhash.xxh3_64_intdigest(document.data)
        max_id = max(max_id, largest)
    return Content(ids, hashes, max_id)


def _documents(reader: BinReader) -> Iterator[tuple[np.ndarray, int]]:
    """Each document's ids as int32, and the largest absolute one, -1 where there is none."""
    for number in range(len(reader)):
        ids = reader.tokens(number)
        largest = max(int(ids.max()), -int(ids.min())) if len(ids) else -1
        if largest > np.iinfo(np.int32).max:
            reader.check(np.iinfo(np.int32).max)
        yield ids.astype(np.int32), largest


def _open_twin(reader: BinReader, twin: Path) -> TokenFile:
    """The twin mapped into memory; where the cache cannot hold it, the ids decoded into memory."""
    if not _make_twin(reader, twin, wait=True):
        return TokenFile(reader, _decoded(reader))
    with contextlib.suppress(OSError):
        os.utime(twin)
    return TokenFile(reader, map_twin(twin), twin)


def _make_twin(reader: BinReader, twin: Path, *, wait: bool) -> bool:
    """Whether the twin is there, after decoding it here if nobody else is at it.

    The lock only saves work: a twin is renamed into place complete, whoever wrote it.
    """
    if _is_complete(twin, reader):
        return True
    try:
        with twin.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return False
            if not _is_complete(twin, reader):
                _write_twin(reader, twin)
    except OSError as error:
        if wait:
            log.warning("no token cache for %s (%s): it is read into memory", reader.path, error)
        return False
    return True


def _write_twin(reader: BinReader, twin: Path) -> None:
    temporary = twin.with_suffix(f".{os.getpid()}.tmp")
    hashes = np.empty(len(reader), np.uint64)
    max_id = -1
    try:
        with temporary.open("wb", buffering=1 << 20) as file:
            file.write(bytes(_HEADER.size))
            for number, (document, largest) in enumerate(_documents(reader)):
                file.write(document.data)
                hashes[number] = xxhash.xxh3_64_intdigest(document.data)
                max_id = max(max_id, largest)
            file.write(hashes.data)
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, int(reader.lengths.sum()), len(reader), max_id))
        temporary.replace(twin)
    finally:
        temporary.unlink(missing_ok=True)


def _is_complete(twin: Path, reader: BinReader) -> bool:
    expected = (_MAGIC, int(reader.lengths.sum()), len(reader))
    try:
        with twin.open("rb") as file:
            *stored, _ = _HEADER.unpack(file.read(_HEADER.size))
            size = os.fstat(file.fileno()).st_size
    except (OSError, struct.error):
        return False
    _, tokens, documents = expected
    return tuple(stored) == expected and size == _HEADER.size + 4 * tokens + 8 * documents


def _cache_folder() -> Path:
    """The cache's folder, made if it can be."""
    base = os.environ.get("EVO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "evo"
    folder = Path(base) / "tokens"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _pruning(cache: Path, in_use: Sequence[Path]) -> Iterator[None]:
    """If this adds twins, remove those that nobody has opened for a month."""
    adds = not all(twin.exists() for twin in in_use)
    yield
    if not adds:
        return
    oldest = time.time() - _KEEP_DAYS * 86400
    for path in cache.glob("*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
