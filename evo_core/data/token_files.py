"""Token ids of ``.bin`` files as flat arrays.

JSON is too slow to parse again for every batch. So a folder's files are decoded once: small folders into
memory, larger ones into binary twins, flat int32 files that all processes of a machine map into memory. Twins
live in a cache folder (``$EVO_CACHE``, else ``$XDG_CACHE_HOME/evo``, else ``~/.cache/evo``), are named by a
digest of the file they stand for, and can be deleted at any time.
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

import numpy as np
import xxhash

from evo_core.data.format import BinReader, meta_path

log = logging.getLogger(__name__)

# Folders below this size (bytes of .bin) are decoded into memory, in about a second.
IN_MEMORY_BYTES = 64 << 20

_HEADER = struct.Struct("<8sqq48x")  # magic, tokens, largest absolute id
_MAGIC = b"EVOTOK01"
_KEEP_DAYS = 30
_END_BYTES = 64 << 10


class TokenFile:
    """The documents of one ``.bin`` behind each other.

    Attributes:
        path: the ``.bin``.
        starts: int64 [documents + 1], where each document starts in `ids`, and the end.
        ids: int32 [tokens], in memory or memory-mapped; negative ids are context.
        max_id: the largest absolute id; -1 where there is no token.
    """

    def __init__(self, reader: BinReader, ids: np.ndarray, max_id: int) -> None:
        self.path = reader.path
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(reader.lengths)])
        self.ids = ids
        self.max_id = max_id

    def __len__(self) -> int:
        return len(self.starts) - 1

    def check(self, vocab_size: int) -> None:
        """Require every id to be below `vocab_size`.

        Raises:
            DataError: naming file, line and id.
        """
        if self.max_id >= vocab_size:
            BinReader(self.path).check(vocab_size)


def open_token_files(paths: Sequence[Path], *, first: int = 0) -> list[TokenFile]:
    """Open ``.bin`` files, decoding those that no process of this machine has decoded before.

    Many processes may do this at the same time: each twin is decoded by one of them, the others wait for it.

    Args:
        paths: the files.
        first: which of them to decode first; processes that start together share the work when each gives
            its rank.

    Raises:
        DataError: a file is damaged.
    """
    readers = [BinReader(path) for path in paths]
    if sum(path.stat().st_size for path in paths) <= IN_MEMORY_BYTES:
        return [_decoded(reader) for reader in readers]
    cache = _cache_folder()
    twins = [cache / f"{file_digest(reader.path)}.tokens" for reader in readers]
    with _pruning(cache, twins):
        turn = first % max(len(readers), 1)
        for number in [*range(turn, len(readers)), *range(turn)]:
            _make_twin(readers[number], twins[number], wait=False)
        return [_open_twin(reader, twin) for reader, twin in zip(readers, twins, strict=True)]


def file_digest(path: Path, *, with_time: bool = True) -> str:
    """A cheap digest of a ``.bin``: its size, its meta, both its ends, and when it was changed.

    Args:
        with_time: False leaves the time out, so that copies of a file have the same digest.
    """
    stat = path.stat()
    digest = xxhash.xxh3_128(struct.pack("<q", stat.st_size))
    if with_time:
        digest.update(struct.pack("<q", stat.st_mtime_ns))
    digest.update(meta_path(path).read_bytes())
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, stat.st_size - _END_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


def _decoded(reader: BinReader) -> TokenFile:
    ids = np.empty(int(reader.lengths.sum()), np.int32)
    at, max_id = 0, -1
    for document in _int32_documents(reader):
        ids[at : at + len(document)] = document
        at += len(document)
        max_id = max(max_id, _largest(document))
    return TokenFile(reader, ids, max_id)


def _int32_documents(reader: BinReader) -> Iterator[np.ndarray]:
    for number in range(len(reader)):
        ids = reader.tokens(number)
        if _largest(ids) > np.iinfo(np.int32).max:
            reader.check(np.iinfo(np.int32).max)
        yield ids.astype(np.int32)


def _largest(ids: np.ndarray) -> int:
    return int(np.abs(ids).max()) if len(ids) else -1


def _open_twin(reader: BinReader, twin: Path) -> TokenFile:
    """The twin mapped into memory; where the cache cannot hold it, the ids decoded into memory."""
    if not _make_twin(reader, twin, wait=True):
        return _decoded(reader)
    with contextlib.suppress(OSError):
        os.utime(twin)
    with twin.open("rb") as file:
        _, tokens, max_id = _HEADER.unpack(file.read(_HEADER.size))
    ids = np.memmap(twin, np.int32, "r", offset=_HEADER.size, shape=(tokens,)) if tokens else np.empty(0, np.int32)
    return TokenFile(reader, ids, max_id)


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
    max_id = -1
    try:
        with temporary.open("wb") as file:
            file.write(bytes(_HEADER.size))
            for document in _int32_documents(reader):
                document.tofile(file)
                max_id = max(max_id, _largest(document))
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, int(reader.lengths.sum()), max_id))
        temporary.replace(twin)
    finally:
        temporary.unlink(missing_ok=True)


def _is_complete(twin: Path, reader: BinReader) -> bool:
    tokens = int(reader.lengths.sum())
    try:
        with twin.open("rb") as file:
            magic, stored, _ = _HEADER.unpack(file.read(_HEADER.size))
            size = os.fstat(file.fileno()).st_size
    except (OSError, struct.error):
        return False
    return magic == _MAGIC and stored == tokens and size == _HEADER.size + 4 * tokens


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
