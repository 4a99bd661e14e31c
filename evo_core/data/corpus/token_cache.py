"""Token ids of ``.bin`` files as flat arrays.

JSON is too slow to parse again for every batch. So a folder's files are decoded once: small folders into
memory, larger ones into the token cache: flat binary files that all processes of a machine map into memory, each a
header with a checksum of everything, the ids as int32, and of each document how many are trained on and a hash. Opening
a cached file compares the checksum, as fast as it can be read: one that holds another id than was written is made
again. The cache is a folder (``$EVO_CACHE``, else ``$XDG_CACHE_HOME/evo``, else ``~/.cache/evo``); its files are named
by a digest of the ``.bin`` that they stand for, and can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from evo_core.data.shards.format import BinReader, meta_path
from evo_core.errors import DataError
from evo_core.pulse import beat
from evo_core.storage.cache import VARIABLE, cache_folder, mark_in_use
from evo_core.storage.files import replacing
from evo_core.storage.lock import locked

log = logging.getLogger(__name__)

# Folders below this size (bytes of .bin) are decoded into memory, in about a second.
IN_MEMORY_BYTES = 64 << 20

_HEADER = struct.Struct("<8sqqq16s16x")  # magic, tokens, documents, largest absolute id, checksum
_MAGIC = b"EVOTOK03"
_KEEP_DAYS = 30
_END_BYTES = 64 << 10
_CHECKED_AT_ONCE = 1 << 26


class DecodedFile(NamedTuple):
    """What a file holds, as `TokenFile` has it."""

    ids: np.ndarray
    trained: np.ndarray
    hashes: np.ndarray
    max_id: int


class TokenFile:
    """The documents of one ``.bin`` behind each other.

    Attributes:
        path: the ``.bin``.
        starts: int64 [documents + 1], where each document starts in `ids`, and the end.
        ids: int32 [tokens], in memory or memory-mapped; negative ids are context.
        trained: int32 [documents], how many ids of each are trained on: those that are not negative, but never the
            first, which nothing comes before.
        hashes: uint64 [documents], of each document's ids.
        max_id: the largest absolute id; -1 where there is no token.
        cached: the file of the cache that `ids` is mapped from; None where they are in memory.
    """

    def __init__(self, reader: BinReader, content: DecodedFile, cached: Path | None = None) -> None:
        self.path = reader.path
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(reader.lengths)])
        self.ids, self.trained, self.hashes, self.max_id = content
        self.cached = cached

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

    Many processes may do this at the same time: each file is decoded by one of them, the others wait for it.

    Args:
        paths: the files.
        first: which of them to decode first; processes that start together share the work when each gives
            its rank.
        in_memory: False puts small folders into the cache too.

    Raises:
        DataError: a file is damaged.
    """
    readers = [BinReader(path) for path in paths]
    if in_memory and sum(path.stat().st_size for path in paths) <= IN_MEMORY_BYTES:
        return [TokenFile(reader, _decoded(reader)) for reader in readers]
    cache = _cache_folder()
    cached_files = [cache / f"{file_digest(reader.path)}.tokens" for reader in readers]
    with _pruning(cache, cached_files):
        # First whatever nobody is at yet, each process from another file on; then open all, waiting for those that
        # others are still decoding. In this pass the header is enough: the checksum is compared when a file is opened.
        turn = first % max(len(readers), 1)
        for number in [*range(turn, len(readers)), *range(turn)]:
            with contextlib.suppress(OSError):
                _ensure_cached(readers[number], cached_files[number], wait=False)
        return [_cached_or_decoded(reader, cached) for reader, cached in zip(readers, cached_files, strict=True)]


def open_cached(path: Path) -> TokenFile:
    """Open a ``.bin`` whose ids have to be in the cache, since memory has no room for those of all files.

    Raises:
        DataError: it is damaged, or the cache has no room for it.
    """
    reader = BinReader(path)
    try:
        return _open_cached(reader, _cache_folder() / f"{file_digest(path)}.tokens")
    except OSError as error:
        raise DataError(
            f"there is no room for its ids in the token cache ({error.strerror or error}), and in memory neither",
            file=path,
            hint=f"name a folder with room for 4 bytes a token in {VARIABLE}",
        ) from error


def decode_ahead(paths: Sequence[Path], *, first: int = 0) -> None:
    """Put ``.bin`` files into the cache that nobody has put there, one by one; what others are at is left to them.

    Args:
        paths, first: as for `open_token_files`.

    Raises:
        DataError: a file is damaged.
    """
    cache = _cache_folder()
    turn = first % max(len(paths), 1)
    for path in [*paths[turn:], *paths[:turn]]:
        with contextlib.suppress(OSError):
            _ensure_cached(BinReader(path), cache / f"{file_digest(path)}.tokens", wait=False)


def map_cached(cached: Path) -> DecodedFile:
    """What a complete file of the cache holds, mapped into memory.

    Raises:
        OSError: it is not there.
    """
    with cached.open("rb") as file:
        _, tokens, documents, max_id, _ = _HEADER.unpack(file.read(_HEADER.size))
    # As plain arrays, which slice five times as fast as np.memmap.
    mapped = np.asarray(np.memmap(cached, np.uint8, "r"))
    ends = np.cumsum([_HEADER.size, 4 * tokens, 4 * documents, 8 * documents]).tolist()
    ids, trained, hashes = (mapped[start:end] for start, end in pairwise(ends))
    # Hashes may lie at no multiple of 8 bytes, which numpy copes with.
    return DecodedFile(ids.view(np.int32), trained.view(np.int32), hashes.view(np.uint64), max_id)


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


class _Document(NamedTuple):
    """A decoded document: its ids as int32, how many are trained on, their hash, the largest absolute one or -1."""

    ids: np.ndarray
    trained: int
    hash: int
    largest: int


def _decoded(reader: BinReader) -> DecodedFile:
    content = _empty(reader)
    ids = np.empty(int(reader.lengths.sum()), np.int32)
    at, max_id = 0, -1
    for number, document in enumerate(_documents(reader)):
        ids[at : at + len(document.ids)] = document.ids
        at += len(document.ids)
        content.trained[number], content.hashes[number] = document.trained, document.hash
        max_id = max(max_id, document.largest)
    return content._replace(ids=ids, max_id=max_id)


def _empty(reader: BinReader) -> DecodedFile:
    """Room for what is known of each document."""
    return DecodedFile(np.empty(0, np.int32), np.empty(len(reader), np.int32), np.empty(len(reader), np.uint64), -1)


def _documents(reader: BinReader) -> Iterator[_Document]:
    for number in range(len(reader)):
        tokens = reader.tokens(number)
        lowest, largest = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, -1)
        largest = max(largest, -lowest)
        if largest > np.iinfo(np.int32).max:
            reader.check(np.iinfo(np.int32).max)
        ids = tokens.astype(np.int32)
        behind = ids[1:]
        trained = len(behind) if lowest >= 0 else int(np.count_nonzero(behind >= 0))
        yield _Document(ids, trained, xxhash.xxh3_64_intdigest(ids.data), largest if len(ids) else -1)
        beat()  # the first start decodes for hours where there is much


def _cached_or_decoded(reader: BinReader, cached: Path) -> TokenFile:
    try:
        return _open_cached(reader, cached)
    except OSError as error:
        log.warning("no token cache for %s (%s): it is read into memory", reader.path, error)
        return TokenFile(reader, _decoded(reader))


def _open_cached(reader: BinReader, cached: Path) -> TokenFile:
    """The cached file, mapped, after a look at its checksum.

    Raises:
        OSError: the cache cannot hold it.
    """
    _ensure_cached(reader, cached, wait=True, is_there=_is_sound)
    mark_in_use(cached)
    return TokenFile(reader, map_cached(cached), cached)


def _ensure_cached(
    reader: BinReader, cached: Path, *, wait: bool, is_there: Callable[[Path, BinReader], bool] | None = None
) -> None:
    """Make the cached file if it is not there.

    The lock only saves work: a cached file appears complete, whoever wrote it.

    Raises:
        BlockingIOError: another process is at it, and is not waited for.
        OSError: it cannot be written.
    """
    is_there = is_there or _is_complete
    if is_there(cached, reader):
        return
    with locked(cached.with_suffix(".lock"), give_up=lambda: not wait):
        if not is_there(cached, reader):
            if _is_complete(cached, reader):
                log.warning("the token cache of %s was damaged, and is made again: %s", reader.path, cached)
            _write_cached(reader, cached)


def _write_cached(reader: BinReader, cached: Path) -> None:
    content, checksum, max_id = _empty(reader), xxhash.xxh3_128(), -1
    with replacing(cached, durable=False) as draft, draft.open("wb", buffering=1 << 20) as file:
        file.write(bytes(_HEADER.size))
        for number, document in enumerate(_documents(reader)):
            file.write(document.ids.data)
            checksum.update(document.ids.data)
            content.trained[number], content.hashes[number] = document.trained, document.hash
            max_id = max(max_id, document.largest)
        for array in (content.trained, content.hashes):
            file.write(array.data)
            checksum.update(array.data)
        file.seek(0)
        file.write(_header(int(reader.lengths.sum()), len(reader), max_id, checksum))


def _header(tokens: int, documents: int, max_id: int, checksum: xxhash.xxh3_128) -> bytes:
    """The header; its checksum is of what follows and of the header's own numbers."""
    checksum.update(struct.pack("<qqq", tokens, documents, max_id))
    return _HEADER.pack(_MAGIC, tokens, documents, max_id, checksum.digest())


def _is_complete(cached: Path, reader: BinReader) -> bool:
    expected = (_MAGIC, int(reader.lengths.sum()), len(reader))
    try:
        with cached.open("rb") as file:
            *stored, _, _ = _HEADER.unpack(file.read(_HEADER.size))
            size = os.fstat(file.fileno()).st_size
    except (OSError, struct.error):
        return False
    _, tokens, documents = expected
    return tuple(stored) == expected and size == _HEADER.size + 4 * tokens + (4 + 8) * documents


def _is_sound(cached: Path, reader: BinReader) -> bool:
    """Whether the cached file is complete and holds what was written."""
    if not _is_complete(cached, reader):
        return False
    try:
        with cached.open("rb") as file:
            stored = file.read(_HEADER.size)
        content, checksum = map_cached(cached), xxhash.xxh3_128()
    except OSError:  # somebody cleared the cache meanwhile
        return False
    for array in (content.ids, content.trained, content.hashes):
        for start in range(0, len(array), _CHECKED_AT_ONCE):
            checksum.update(array[start : start + _CHECKED_AT_ONCE].data)
            beat()
    return stored == _header(len(content.ids), len(content.trained), content.max_id, checksum)


def _cache_folder() -> Path:
    """The cache's folder, made if it can be."""
    folder = cache_folder("tokens")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _pruning(cache: Path, in_use: Sequence[Path]) -> Iterator[None]:
    """If this adds files to the cache, remove those that nobody has opened for a month."""
    adds = not all(cached.exists() for cached in in_use)
    yield
    if not adds:
        return
    oldest = time.time() - _KEEP_DAYS * 86400
    for path in cache.glob("*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
