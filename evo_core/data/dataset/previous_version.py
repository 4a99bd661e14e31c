"""What a version of a dataset leaves for the next one: ``refresh/`` in its folder.

``record.json`` names, by columns, the sources (raw file, token object, documents), the selections taken from them
(under ``units``), and the parts of selections each shard is made of. ``hashes.npy`` and ``signatures.npy`` hold the
fingerprints of all documents where repeated ones are removed. One file instead of one for each raw file: a refresh of
ten thousand files with three new ones opens three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import orjson

from evo_core.data.dataset.inventory import FileInventory, Inventory, KnownFile, Selection, ShardSource
from evo_core.storage.files import write_file

FOLDER, STATISTICS = "refresh", "statistics.json"
_VERSION = 1


class SelectionPart(NamedTuple):
    """Documents [start, stop) of a selection; selections are numbered in the order of sources, types and splits."""

    selection: int
    start: int
    stop: int


@dataclass(frozen=True)
class PreviousVersion:
    """What is known of the version of a dataset that came before.

    Attributes:
        folder: the dataset's folder.
        files: what is known of each source.
        first_selection: the number of each source's first selection.
        parts: what each shard is made of, by its path below the folder.
        shards: each shard's entry in the statistics, by path.
    """

    folder: Path
    files: Sequence[FileInventory]
    first_selection: Sequence[int]
    parts: Mapping[str, Sequence[SelectionPart]]
    shards: Mapping[str, dict[str, Any]]
    _numbers: Mapping[tuple[str, str], int] = field(repr=False)
    _first_document: Sequence[int] = field(repr=False)
    _hashes: np.ndarray | None = field(repr=False)
    _signatures: np.ndarray | None = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """What a dataset's folder says of it; None if it says nothing, or nothing that can be used any more."""
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
            by_field = (columns[name] for name in Selection._fields)
            selections = [Selection(*values) for values in zip(*by_field, strict=True)]
            first_selection = np.cumsum([0, *sources["units"]]).tolist()
            files = [
                FileInventory(documents, repeated, tuple(selections[start : start + count]))
                for documents, repeated, count, start in zip(
                    sources["documents"], sources["repeated"], sources["units"], first_selection, strict=False
                )
            ]
            return cls(
                folder,
                files,
                first_selection,
                {path: [SelectionPart(*part) for part in parts] for path, parts in content["shards"].items()},
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

    def known(self, source: ShardSource) -> KnownFile | None:
        """What this dataset knows of a source."""
        number = self.number(source)
        if number is None:
            return None
        start = self._first_document[number]
        here = slice(start, start + self.files[number].documents)
        hashes = None if self._hashes is None else self._hashes[here]
        return KnownFile(self.files[number], hashes, None if self._signatures is None else self._signatures[here])


def save_for_next_version(
    folder: Path, sources: Sequence[ShardSource], inventory: Inventory, parts: Mapping[str, Sequence[SelectionPart]]
) -> None:
    """Write what the next version starts from into a dataset's folder."""
    columns = zip(*inventory.selections(), strict=True)
    content = {
        "version": _VERSION,
        "sources": {
            "origin": [source.origin for source in sources],
            "object": [source.object for source in sources],
            "documents": [file.documents for file in inventory.files],
            "repeated": [file.repeated for file in inventory.files],
            "units": [len(file.selections) for file in inventory.files],
        },
        "units": dict(zip(Selection._fields, columns, strict=True)),
        "shards": {path: [tuple(part) for part in of_shard] for path, of_shard in parts.items()},
    }
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, array in {"hashes.npy": inventory.hashes, "signatures.npy": inventory.signatures}.items():
        if array is not None:
            np.save(folder / FOLDER / name, array)
    write_file(folder / FOLDER / "record.json", orjson.dumps(content))


def _load_array(path: Path) -> np.ndarray | None:
    return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None
