"""Writes the shards of one type and side, each with what the dataset's manifest says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evo_core.data.dataset.inventory import Row, ShardSource
from evo_core.data.dataset.previous_version import Piece, PreviousVersion
from evo_core.data.dataset.scan import document_line
from evo_core.data.dataset.shard_plan import Load, Side
from evo_core.data.shards.format import BinReader, BinWriter, meta_path
from evo_core.storage.files import link_or_copy


@dataclass
class ShardWriter:
    """Writes sides below a folder.

    Attributes:
        out: the folder.
        sources, rows: the sources of the dataset and what is known of them.
        shard_tokens: target size; a shard is closed by the document with which it reaches it.
        earlier: the dataset that shards are kept from.
        on_tokens: called with the tokens of documents that were written.
        pieces: what each shard is made of; filled.
    """

    out: Path
    sources: Sequence[ShardSource]
    rows: Sequence[Row]
    shard_tokens: int
    earlier: PreviousVersion | None
    on_tokens: Callable[[int], None]
    pieces: dict[str, list[Piece]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._source_of_unit = np.repeat(np.arange(len(self.rows)), [len(row.units) for row in self.rows])
        self._first_unit = np.cumsum([0, *(len(row.units) for row in self.rows)])
        self._open = lru_cache(maxsize=4)(BinReader)  # a large file goes into several shards, one after the other

    def origin(self, unit: int) -> str:
        """The raw file of a unit."""
        return self.sources[self._source_of_unit[unit]].origin

    def write(self, side: Side) -> list[dict[str, Any]]:
        """Link the shards that are kept, write the others; the manifest's entries, sorted by path."""
        entries = [self._keep(path, pieces) for path, pieces in side.kept.items()]
        taken = {entry["path"] for entry in entries}
        names = (f"{side.split}/{side.type}/train_{number:03d}.bin" for number in range(10**9))
        free = (name for name in names if name not in taken)
        loads = list(side.loads)
        while loads:
            entries.append(self._write_shard(next(free), side, loads))
        return sorted(entries, key=lambda entry: entry["path"])

    def _keep(self, path: str, pieces: list[Piece]) -> dict[str, Any]:
        assert self.earlier is not None
        self.pieces[path] = pieces
        for name in (path, f"{path}.meta"):
            link_or_copy(self.earlier.folder / name, self.out / name)
        return self.earlier.shards[path]

    def _write_shard(self, path: str, side: Side, loads: list[Load]) -> dict[str, Any]:
        """Write one shard; takes what went into it from the beginning of `loads`."""
        pieces: list[Piece] = []
        with BinWriter(self.out / path) as writer:
            done = 0
            while done < len(loads) and writer.tokens < self.shard_tokens:
                load = loads[done]
                count, before = 0, writer.tokens
                for line, tokens in self._documents(load):
                    writer.write_line(line, tokens)
                    count += 1
                    if writer.tokens >= self.shard_tokens:
                        break
                unit, start, stop = load.piece
                pieces.append(Piece(unit, start, start + count))
                self.on_tokens(writer.tokens - before)
                if start + count < stop:
                    rest = Piece(unit, start + count, stop)
                    loads[done] = Load(rest, load.shard, load.first + count, load.tokens)
                else:
                    done += 1
            del loads[:done]
        self.pieces[path] = _joined(pieces)
        return {
            "path": path,
            "type": side.type,
            "split": side.split,
            "documents": writer.documents,
            "tokens": writer.tokens,
            "bytes": writer.path.stat().st_size,
            "digest": shard_digest(writer.path),
            "meta_digest": shard_digest(meta_path(writer.path)),
            "origins": list(dict.fromkeys(self.origin(piece.unit) for piece in pieces)),
        }

    def _documents(self, load: Load) -> Iterator[tuple[bytes, int]]:
        """(line, tokens) of each document of a piece."""
        if load.shard:
            assert self.earlier is not None
            reader = self._open(self.earlier.folder / load.shard)
            places: Sequence[int] | np.ndarray = range(load.first, load.first + load.piece.stop - load.piece.start)
        else:
            source = self._source_of_unit[load.piece.unit]
            in_row = self.rows[source].places
            assert in_row is not None
            reader = self._open(self.sources[source].bin_path)
            places = in_row[load.piece.unit - self._first_unit[source]][load.piece.start : load.piece.stop]
        for document in places:
            yield document_line(reader, int(document)), int(reader.lengths[document])


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces without cuts between those that follow on each other."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].unit == piece.unit and joined[-1].stop == piece.start:
            joined[-1] = Piece(piece.unit, joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined


def shard_digest(path: Path) -> str:
    """The blake3 of a file by which the manifest knows it, hex."""
    from blake3 import blake3

    return blake3().update_mmap(path).hexdigest()
