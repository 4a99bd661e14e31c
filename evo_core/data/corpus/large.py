"""A corpus of more documents than are kept in memory: the shards of a folder as blocks of documents of each data type.

`open_blocks` is for many documents what `corpus.open_corpus` is for few. What it finds out is kept in the machine's
cache (`stored`), so a start looks at every file's name, size and time, and at no document. It depends on nothing else:
a shard that was changed is another corpus. Each file of ids is compared with its checksum when the index is made, and
at later starts by its size alone: a trillion ids take an hour to be read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evo_core.data.corpus.blocks import BlockedDocuments, Blocks, IndexedFile, index_blocks
from evo_core.data.corpus.corpus import NO_MIN_LENGTH, MinLength, below, check_ids, spans_by_origin, warn_of_unused
from evo_core.data.corpus.index import Arrays
from evo_core.data.corpus.lengths import LengthsPlace, count_documents
from evo_core.data.corpus.mapped_ids import MappedIds, is_cached
from evo_core.data.corpus.stored import StoredIndex
from evo_core.data.corpus.token_cache import decode_ahead, open_cached
from evo_core.data.shards.folder import bin_files, data_types
from evo_core.data.shards.format import meta_path
from evo_core.data.shards.origins import ORIGINS

log = logging.getLogger(__name__)

_VERSION = 1
"""Raised when the index of the same files becomes another."""


class BlockedCorpus(NamedTuple):
    """Documents by data type, a digest of each type's tokens in their order, and how many tokens are trained on."""

    documents: dict[str, BlockedDocuments]
    digests: dict[str, str]
    trained: dict[str, int]


def has_more_documents(folder: Path, than: int) -> bool:
    """Whether the metas of a folder of token shards list more documents than that, short ones included.

    Raises:
        DataError: there are many, and a meta is not readable.
    """
    paths = [path for name in data_types(folder) for path in bin_files(folder, name)]
    # A document is two numbers of a byte each at least, so most folders are known by the sizes of their metas.
    if sum(meta.stat().st_size for path in paths if (meta := meta_path(path)).exists()) <= 2 * than:
        return False
    return sum(map(count_documents, paths)) > than


def open_blocks(
    folder: Path,
    *,
    size: int,
    vocab_size: int | None = None,
    min_length: MinLength = NO_MIN_LENGTH,
    first: int = 0,
) -> BlockedCorpus:
    """Open the shards of all data types.

    Args:
        folder: of token shards.
        size: documents of a block.
        vocab_size: ids must be below it.
        min_length: shorter documents are left out.
        first: as for `open_token_files`.

    Raises:
        DataError: a file is missing or damaged, an id is outside the vocabulary, or there is no room for the ids.
        ConfigError: a file matches several keys of min_length_dict.
    """
    paths = {name: sorted(bin_files(folder, name)) for name in data_types(folder)}
    everything = [path for of_type in paths.values() for path in of_type]
    warn_of_unused(min_length, folder, everything)
    shortest = [max(min_length.of(below(folder, path)), 1) for path in everything]

    def find_out() -> Arrays:
        return _found_out(folder, paths, shortest, size)

    index = StoredIndex(_key(folder, everything, shortest, size))
    if not index.holds(_NAME):  # all processes decode, and one of them then looks at what all have decoded
        decode_ahead(everything, first=first)
    found = index.arrays(_NAME, find_out)
    if vocab_size is not None:
        check_ids(everything, found["max_ids"].tolist(), vocab_size)
    cached = [Path(path.decode()) for path in found["cached"].tolist()]
    gone = [
        path
        for path, of_path, bytes_ in zip(everything, cached, found["cached_bytes"].tolist(), strict=True)
        if not is_cached(of_path, bytes_)
    ]
    if gone:
        log.warning(
            "%d of %d files of ids are not in the token cache any more: they are decoded", len(gone), len(cached)
        )
        decode_ahead(gone, first=first)
        for path in gone:  # those that others were at, and whatever cannot be put there: said now, not in a step
            open_cached(path)
    return _corpus(paths, found, cached, shortest, size)


_NAME = "blocks"


def _key(folder: Path, paths: Sequence[Path], shortest: Sequence[int], size: int) -> str:
    """A digest of all that an index depends on."""
    origins = folder.absolute().parent / ORIGINS
    files = [*paths, *map(meta_path, paths), *[origins] * origins.exists()]
    stats = [(str(file.absolute()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    content = {"version": _VERSION, "size": size, "files": stats, "shortest": list(shortest)}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _found_out(folder: Path, paths: Mapping[str, Sequence[Path]], shortest: Sequence[int], size: int) -> Arrays:
    """What is known of a corpus, as arrays: `_corpus` reads them."""
    began, arrays, limits = time.monotonic(), dict[str, np.ndarray](), iter(shortest)
    files: list[IndexedFile] = []
    max_ids = []
    for number, of_type in enumerate(paths.values()):
        own = []
        for path in of_type:
            file, max_id = _indexed(path, next(limits))
            own.append(file)
            max_ids.append(max_id)
        spans = spans_by_origin(folder, {file.path: file.documents for file in own})
        blocks, digest, trained = index_blocks(own, spans, size)
        arrays |= {f"{number}-{part}": array for part, array in blocks._asdict().items()}
        arrays[f"{number}-digest-and-trained"] = np.array([digest.encode(), str(trained).encode()])
        files += own
    arrays["max_ids"] = np.array(max_ids, np.int64)
    arrays["cached"] = np.array([str(file.cached).encode() for file in files])
    arrays["cached_bytes"] = np.array([file.cached.stat().st_size for file in files], np.int64)
    arrays["documents"] = np.array([file.documents for file in files], np.int64)
    arrays["lengths"] = np.array([file.lengths[:2] for file in files], np.int64).reshape(-1, 2)
    arrays["lengths_types"] = np.array([file.lengths.type.encode() for file in files])
    log.info("indexed %s documents in %.0f s", f"{int(arrays['documents'].sum()):,}", time.monotonic() - began)
    return arrays


def _indexed(path: Path, shortest: int) -> tuple[IndexedFile, int]:
    """A file whose ids are in the cache and are what was decoded, and the largest of them."""
    file = open_cached(path)
    assert file.cached is not None
    lengths, documents = LengthsPlace.of(path)
    return IndexedFile(path, file.cached, documents, lengths, shortest), file.max_id


def _corpus(
    paths: Mapping[str, Sequence[Path]], found: Arrays, cached: Sequence[Path], shortest: Sequence[int], size: int
) -> BlockedCorpus:
    """The corpus that `_found_out` tells of."""
    corpus, at = BlockedCorpus({}, {}, {}), 0
    places = [
        LengthsPlace(first, stride, type_.decode())
        for (first, stride), type_ in zip(found["lengths"].tolist(), found["lengths_types"].tolist(), strict=True)
    ]
    counts = found["documents"].tolist()
    for number, (name, of_type) in enumerate(paths.items()):
        own = slice(at, at := at + len(of_type))
        files = [
            IndexedFile(*row) for row in zip(of_type, cached[own], counts[own], places[own], shortest[own], strict=True)
        ]
        blocks = Blocks(*(found[f"{number}-{part}"] for part in Blocks._fields))
        corpus.documents[name] = BlockedDocuments(files, MappedIds(of_type, cached[own]), blocks, size)
        digest, trained = found[f"{number}-digest-and-trained"].tolist()
        corpus.digests[name], corpus.trained[name] = digest.decode(), int(trained)
    return corpus
