"""What the next dataset starts from: ``refresh/`` in a dataset's folder.

``record.json`` names, by columns, the sources (raw file, token object, documents), the units taken from them, and the
pieces of units each shard is made of. ``hashes.npy`` and ``signatures.npy`` hold the fingerprints of all documents
where repeated ones are removed. One file instead of one for each raw file: a refresh of ten thousand files with three
new ones opens three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import orjson

from evo_core.data.dataset.inventory import Earlier, Inventory, Row, ShardSource, Unit
from evo_core.storage.files import write_file

FOLDER, STATISTICS = "refresh", "statistics.json"
_VERSION = 1


class Piece(NamedTuple):
    """Documents [start, stop) of a unit; units are numbered in the order of sources, types and sides."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class PreviousVersion:
    """The record of a dataset.

    Attributes:
        folder: the dataset's folder.
        rows: what is known of each source.
        first_unit: the number of each source's first unit.
        pieces: what each shard is made of, by its path below the folder.
        shards: each shard's entry in the statistics, by path.
    """

    folder: Path
    rows: Sequence[Row]
    first_unit: Sequence[int]
    pieces: Mapping[str, Sequence[Piece]]
    shards: Mapping[str, dict[str, Any]]
    _numbers: Mapping[tuple[str, str], int] = field(repr=False)
    _first_document: Sequence[int] = field(repr=False)
    _hashes: np.ndarray | None = field(repr=False)
    _signatures: np.ndarray | None = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """The record of a dataset; None if it has none, or one that cannot be used any more."""
        folder = Path(folder)
        try:
            content = orjson.loads((folder / FOLDER / "record.json").read_bytes())
            statistics = orjson.loads((folder / STATISTICS).read_bytes())
            if content["version"] != _VERSION:
                return None
            shards = {shard["path"]: shard for shard in statistics["shards"]}
            if any((folder / path).stat().st_size != shard["bytes"] for path, shard in shards.items()):
                return None
            sources, columns = content["sources"], content["units"]
            units = [Unit(*values) for values in zip(*(columns[name] for name in Unit._fields), strict=True)]
            first_unit = np.cumsum([0, *sources["units"]]).tolist()
            rows = [
                Row(documents, repeated, tuple(units[start : start + count]))
                for documents, repeated, count, start in zip(
                    sources["documents"], sources["repeated"], sources["units"], first_unit, strict=False
                )
            ]
            return cls(
                folder,
                rows,
                first_unit,
                {path: [Piece(*piece) for piece in pieces] for path, pieces in content["shards"].items()},
                shards,
                {key: n for n, key in enumerate(zip(sources["origin"], sources["object"], strict=True))},
                np.cumsum([0, *sources["documents"]]).tolist(),
                _load_array(folder / FOLDER / "hashes.npy"),
                _load_array(folder / FOLDER / "signatures.npy"),
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None  # losing it costs time, nothing else

    def number(self, source: ShardSource) -> int | None:
        """The number of a source in this dataset, if it was made from it."""
        return self._numbers.get((source.origin, source.object)) if source.object else None

    def share(self, sources: Sequence[ShardSource]) -> float:
        """Which part of the sources this dataset was made from, 0 to 1."""
        return sum(self.number(source) is not None for source in sources) / max(len(sources), 1)

    def known(self, source: ShardSource) -> Earlier | None:
        """What this dataset knows of a source."""
        number = self.number(source)
        if number is None:
            return None
        start = self._first_document[number]
        here = slice(start, start + self.rows[number].documents)
        hashes = None if self._hashes is None else self._hashes[here]
        return Earlier(self.rows[number], hashes, None if self._signatures is None else self._signatures[here])


def save_record(
    folder: Path, sources: Sequence[ShardSource], inventory: Inventory, pieces: Mapping[str, Sequence[Piece]]
) -> None:
    """Write the record of a dataset into its folder."""
    columns = zip(*inventory.units(), strict=True)
    content = {
        "version": _VERSION,
        "sources": {
            "origin": [source.origin for source in sources],
            "object": [source.object for source in sources],
            "documents": [row.documents for row in inventory.rows],
            "repeated": [row.repeated for row in inventory.rows],
            "units": [len(row.units) for row in inventory.rows],
        },
        "units": dict(zip(Unit._fields, columns, strict=True)),
        "shards": {path: [tuple(piece) for piece in of_shard] for path, of_shard in pieces.items()},
    }
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, array in {"hashes.npy": inventory.hashes, "signatures.npy": inventory.signatures}.items():
        if array is not None:
            np.save(folder / FOLDER / name, array)
    write_file(folder / FOLDER / "record.json", orjson.dumps(content))


def _load_array(path: Path) -> np.ndarray | None:
    return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None
