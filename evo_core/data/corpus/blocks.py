"""The documents of one data type in blocks of neighbours: what is kept of a corpus that is too large to be kept whole.

A block is a fixed number of documents that follow each other among those that are trained on. Of each block is known
where it begins in the metas, where its first document's ids begin, and how many tokens all blocks before it hold: 24
bytes, whatever its documents are. What lies inside is read from the metas when it is needed (`BlockedDocuments.load`).

`index_blocks` finds this out in one pass over metas and token cache, a piece at a time, and once in the life of the
files: `stored` keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from evo_core.data.corpus.document_set import ByNumber, DocumentSpan, Table, read_spans
from evo_core.data.corpus.lengths import LengthsPlace
from evo_core.data.corpus.token_cache import map_cached
from evo_core.pulse import beat

_PIECE = 1 << 20
"""Documents that are looked at together when the index is made."""


class IndexedFile(NamedTuple):
    """A ``.bin`` whose ids are in the token cache.

    Attributes:
        path: of the ``.bin``.
        cached: its file in the cache.
        documents: how many it has.
        lengths: where the meta says how long they are.
        shortest: documents with fewer tokens are left out.
    """

    path: Path
    cached: Path
    documents: int
    lengths: LengthsPlace
    shortest: int


class Blocks(NamedTuple):
    """Where the blocks of one data type begin.

    A run is a span of documents of one file; runs behind each other are all documents of the type, left out ones too,
    which are numbered in that order.

    Attributes:
        run_files: int32 [runs], number of the file.
        run_starts: int64 [runs], the run's first document in its file.
        run_ends: int64 [runs], number of the document behind the run.
        run_places: int64 [runs], where the ids of its first document begin in its file.
        firsts: int64 [blocks + 1], number of each block's first document, and how many documents there are.
        places: int64 [blocks], where that document's ids begin in its file.
        before: int64 [blocks + 1], tokens of all earlier blocks, and of all.
        documents: int64 [1], documents that are not left out.
    """

    run_files: np.ndarray
    run_starts: np.ndarray
    run_ends: np.ndarray
    run_places: np.ndarray
    firsts: np.ndarray
    places: np.ndarray
    before: np.ndarray
    documents: np.ndarray


class BlockedDocuments:
    """The documents of one type, block by block.

    Attributes:
        documents, tokens: how many there are.
        size: documents of a block; the last one may have fewer.
        before: as in `Blocks`.

    Args:
        files: all files of the type.
        ids: their tokens, int32 each.
        blocks: where blocks begin.
        size: documents of a block.
    """

    def __init__(self, files: Sequence[IndexedFile], ids: ByNumber, blocks: Blocks, size: int) -> None:
        self._files, self._ids, self._blocks, self.size = files, ids, blocks, size
        self.before, self.documents = blocks.before, int(blocks.documents[0])
        self.tokens = int(self.before[-1])

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._blocks.places)

    def load(self, numbers: np.ndarray) -> Table:
        """The documents of some blocks behind each other.

        Args:
            numbers: int64 [n], at least one.

        Raises:
            DataError: a meta is not as it was.
        """
        blocks, files = self._blocks, self._files
        firsts, stops = blocks.firsts[numbers], blocks.firsts[numbers + 1]
        first_runs = blocks.run_ends.searchsorted(firsts, side="right")
        lengths, pieces = [], []  # of each piece: its file, and where its ids begin
        rows = zip(firsts.tolist(), stops.tolist(), first_runs.tolist(), blocks.places[numbers].tolist(), strict=True)
        for first, stop, first_run, place in rows:
            at, run, begins = first, first_run, place
            while at < stop:
                run_end, file = int(blocks.run_ends[run]), int(blocks.run_files[run])
                end = min(stop, run_end)
                # Counted from the end of the run, whose start is not kept among the numbers.
                in_file = int(blocks.run_starts[run]) + at - (int(blocks.run_ends[run - 1]) if run else 0)
                lengths.append(files[file].lengths.read(files[file].path, in_file, in_file + end - at))
                pieces.append((file, begins))
                at, run = end, run + 1
                if at < stop:
                    begins = int(blocks.run_places[run])
        return _table(files, lengths, np.array(pieces, np.int64))

    def read(self, files: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Ids [starts[i], stops[i]) of file files[i], for each i; int32, views of the files.

        Args:
            files: int [n].
            starts, stops: int64 [n].
        """
        return read_spans(self._ids, files, starts, stops)


def _table(files: Sequence[IndexedFile], lengths: Sequence[np.ndarray], pieces: np.ndarray) -> Table:
    """The documents of some pieces of files that are not left out.

    Args:
        lengths: of each piece, int64 [documents of it].
        pieces: int64 [pieces, 2], number of the file, and where the ids begin.
    """
    counts = np.array([len(part) for part in lengths], np.int64)
    whole = np.concatenate(lengths)
    before = np.cumsum(whole) - whole  # tokens before a document, of all pieces behind each other
    of_piece = before[np.cumsum(counts) - counts]
    starts = before + np.repeat(pieces[:, 1] - of_piece, counts)
    numbers = np.repeat(pieces[:, 0].astype(np.int32), counts)
    shortest = np.repeat(np.array([files[file].shortest for file in pieces[:, 0].tolist()], np.int64), counts)
    kept = whole >= shortest
    return Table(numbers, starts, whole) if kept.all() else Table(numbers[kept], starts[kept], whole[kept])


def index_blocks(
    files: Sequence[IndexedFile], spans: Sequence[DocumentSpan] | None, size: int
) -> tuple[Blocks, str, int]:
    """Find the blocks of one data type.

    Args:
        files: their order is the documents' order, where nothing else is said.
        spans: all documents, in another order.
        size: documents of a block.

    Returns:
        The blocks, a digest of the tokens of all documents in their order, and how many tokens are trained on. Which
        file a document lies in changes neither digest nor what a block holds.
    """
    if spans is None:
        spans = [DocumentSpan(number, 0, file.documents) for number, file in enumerate(files)]
    runs = [span for span in spans if span.stop > span.start]
    run_places = _run_places(files, runs)
    lengths_digest, hashes_digest = xxhash.xxh3_128(), xxhash.xxh3_128()
    firsts, places, before = [], [], []
    seen = kept = tokens = trained = 0
    for piece in _pieces(files, runs, run_places):
        chosen = np.flatnonzero(piece.lengths >= piece.shortest)
        lengths = piece.lengths[chosen]
        ends = np.cumsum(lengths)
        begin = np.arange(-kept % size, len(chosen), size)  # the documents that blocks begin with
        firsts.append(seen + chosen[begin])
        places.append(piece.place + (np.cumsum(piece.lengths) - piece.lengths)[chosen[begin]])
        before.append(tokens + (ends - lengths)[begin])
        lengths_digest.update(lengths.data)
        hashes_digest.update(piece.hashes[chosen].data)
        seen, kept, tokens = seen + len(piece.lengths), kept + len(chosen), tokens + int(lengths.sum())
        trained += int(piece.trained[chosen].sum(dtype=np.int64))
        beat()
    counts = np.array([run.stop - run.start for run in runs], np.int64)
    blocks = Blocks(
        run_files=np.array([run.file for run in runs], np.int32),
        run_starts=np.array([run.start for run in runs], np.int64),
        run_ends=np.cumsum(counts),
        run_places=run_places,
        firsts=_joined([*firsts, np.array([seen])]),
        places=_joined(places),
        before=_joined([*before, np.array([tokens])]),
        documents=np.array([kept], np.int64),
    )
    digest = xxhash.xxh3_128(lengths_digest.digest() + hashes_digest.digest()).hexdigest()
    return blocks, digest, trained


class _Piece(NamedTuple):
    """Some documents behind each other in one file.

    Attributes:
        lengths, trained, hashes: [documents], of each, as in `TokenFile`.
        place: where the ids of the first begin in the file.
        shortest: documents with fewer tokens are left out.
    """

    lengths: np.ndarray
    trained: np.ndarray
    hashes: np.ndarray
    place: int
    shortest: int


def _pieces(files: Sequence[IndexedFile], runs: Iterable[DocumentSpan], places: np.ndarray) -> Iterator[_Piece]:
    """The documents of all runs, some at a time."""
    mapped, content = -1, None
    for run, place in zip(runs, places.tolist(), strict=True):
        file = files[run.file]
        if content is None or mapped != run.file:
            mapped, content = run.file, map_cached(file.cached)
        for start in range(run.start, run.stop, _PIECE):
            stop = min(run.stop, start + _PIECE)
            lengths = file.lengths.read(file.path, start, stop)
            yield _Piece(lengths, content.trained[start:stop], content.hashes[start:stop], place, file.shortest)
            place += int(lengths.sum())


def _run_places(files: Sequence[IndexedFile], runs: Sequence[DocumentSpan]) -> np.ndarray:
    """Where the ids of each run's first document begin in its file, int64 [runs]."""
    places = np.zeros(len(runs), np.int64)
    in_files = sorted((run.file, run.start, number) for number, run in enumerate(runs) if run.start)
    file, at, tokens = -1, 0, 0
    for of_file, start, number in in_files:
        if of_file != file:
            file, at, tokens = of_file, 0, 0
        while at < start:
            stop = min(start, at + _PIECE)
            tokens += int(files[file].lengths.read(files[file].path, at, stop).sum())
            at = stop
            beat()
        places[number] = tokens
    return places


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([*arrays, np.zeros(0, np.int64)])
