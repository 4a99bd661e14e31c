"""What sharding must know of a token file before it writes a byte: for each document its length, split, type and, to
find duplicates, its fingerprints. A file is read once for it; scans of many files run side by side.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from evo_core.cores import cores
from evo_core.data.dataset.dedup import NearDuplicates
from evo_core.data.dataset.routing import TypeRouting, document_types
from evo_core.data.shards.format import BinReader, encode_line
from evo_core.process import die_with_parent

# Less than this many bytes are read faster here than in processes that must start first.
_INLINE_BYTES = 64 << 20
_INLINE_BYTES_WITH_MODELS = 1 << 20
_BYTES_PER_TASK = 16 << 20


@dataclass(frozen=True)
class ScanSpec:
    """How a file is looked at; plain values, so that it can be sent to another process.

    Attributes:
        bin_path: the token file.
        type: the type of its path.
        routing: how its documents get their types.
        valid_fraction, seed: which documents are held out.
        hashes: whether documents are hashed, to find copies.
        near: how near duplicates are found; None: they are not.
    """

    bin_path: Path
    type: str
    routing: TypeRouting
    valid_fraction: float
    seed: int
    hashes: bool = False
    near: NearDuplicates | None = None


@dataclass(frozen=True)
class Scan:
    """The documents of one token file.

    Attributes:
        lengths: int32 [documents], tokens of each.
        held_out: bool [documents].
        types: names of the types that occur.
        type_numbers: int16 [documents], positions in `types`.
        hashes: uint64 [documents, 2] of the tokens; None where copies are not looked for.
        signatures: uint16 [documents, permutations]; None where near duplicates are not looked for.
    """

    lengths: np.ndarray
    held_out: np.ndarray
    types: tuple[str, ...]
    type_numbers: np.ndarray
    hashes: np.ndarray | None
    signatures: np.ndarray | None


def scan(spec: ScanSpec) -> Scan:
    """Look at every document of a file.

    Whether a document is held out follows from its tokens and the seed alone.

    Raises:
        DataError: the file, its meta or its types are damaged; naming the document.
    """
    reader = BinReader(spec.bin_path)
    limit = int(spec.valid_fraction * 2**64)  # hashes are even over 64 bits: this share of them lies below
    held_out = np.zeros(len(reader), bool)
    hashes = np.zeros((len(reader), 2), np.uint64) if spec.hashes else None
    for document in range(len(reader)):
        line = document_line(reader, document)
        held_out[document] = xxhash.xxh3_64_intdigest(line, seed=spec.seed) < limit
        if hashes is not None:
            hashes[document] = np.frombuffer(xxhash.xxh3_128_digest(line), ">u8")
    types = document_types(reader, spec.routing, spec.type)
    signatures = spec.near.signatures(reader) if spec.near else None
    return Scan(reader.lengths.astype(np.int32), held_out, types.names, types.numbers, hashes, signatures)


def scans(specs: Sequence[ScanSpec], *, workers: int | None = None) -> Iterator[Scan]:
    """`scan` of many files, in their order; in this process where that is as quick.

    Args:
        workers: processes; default one a core.
    """
    sizes = [spec.bin_path.stat().st_size if spec.bin_path.exists() else 0 for spec in specs]
    workers = min(workers or cores(), len(specs))
    slow = any(spec.routing.by == "detect" for spec in specs)
    if workers < 2 or sum(sizes) < (_INLINE_BYTES_WITH_MODELS if slow else _INLINE_BYTES):
        yield from map(scan, specs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent) as pool:
        tasks = [pool.submit(_scan_all, chunk) for chunk in _chunks(specs, sizes)]
        try:
            for task in tasks:
                yield from task.result()
        finally:
            for task in tasks:
                task.cancel()


def document_line(reader: BinReader, document: int) -> bytes:
    """A document's line with its newline in our spelling, which is a copy of nearly every line there is.

    Raises:
        DataError: the line is no list of token ids, or has another number of them than the meta says.
    """
    line = reader.line(document)
    body = line[12:-2]
    # What is left without the digits tells the number of ids and every wrong byte, at a fraction of a parser's cost.
    if (
        line.startswith(b'{"tokens": [')
        and line.endswith(b"]}")
        and body.translate(None, b"0123456789") == b", " * (int(reader.lengths[document]) - 1)
        and not (body.startswith(b",") or body.endswith(b" ") or b", ," in body)
    ):
        return line + b"\n"
    return encode_line(reader.tokens(document))


def _scan_all(specs: Sequence[ScanSpec]) -> list[Scan]:
    return [scan(spec) for spec in specs]


def _chunks(specs: Sequence[ScanSpec], sizes: Sequence[int]) -> Iterator[list[ScanSpec]]:
    """Neighbours that are about `_BYTES_PER_TASK` together: many small files are not worth a message each."""
    ends = itertools.accumulate(sizes)
    for _, group in itertools.groupby(zip(specs, ends, strict=True), key=lambda pair: pair[1] // _BYTES_PER_TASK):
        yield [spec for spec, _ in group]
