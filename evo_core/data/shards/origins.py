"""Which raw file each document of a shard comes from, and in what order documents are: ``origins.json``.

::

    {"origins": ["a.txt", "b.jsonl"],
     "shards": {"train/cn/train_000.bin": [[0, 0, 0], [120, 1, 35]]}}

says that the first shard's documents 0 to 119 come from ``a.txt`` and are its first ones of this type and split, and
that the others come from ``b.jsonl`` and follow on 35 others of that file. Names are sorted, so a smaller number is
an earlier name.

The contract with a reader: documents of one type and split are ordered by (origin, position in it). Within a shard they
lie in that order. Which shard a document lies in says nothing: a refresh keeps shards and adds others, so that two
datasets with the same documents may group them differently. `Origins.in_order` gives the one order that both have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import orjson

from evo_core.errors import DataError
from evo_core.storage.files import write_file

ORIGINS = "origins.json"


class DocumentRun(NamedTuple):
    """Documents [start, stop) of a shard, all from one raw file."""

    shard: str
    start: int
    stop: int


class _Entry(NamedTuple):
    """As in the file: a run's first document in the shard, the number of its origin, and its position in that."""

    document: int
    origin: int
    position: int


class Origins:
    """Runs of documents with one origin, for each shard.

    Args:
        names: every raw file that will be named, in any order.
        file: where this is read from; None where it is made.
    """

    def __init__(self, names: Iterable[str] = (), file: Path | None = None) -> None:
        self._file = file
        self._names = sorted(set(names))
        self._number = {name: number for number, name in enumerate(self._names)}
        self._entries: dict[str, list[_Entry]] = {}

    @property
    def shards(self) -> tuple[str, ...]:
        """All shards, by their paths below the folder."""
        return tuple(self._entries)

    def add(self, shard: str, document: int, origin: str, position: int) -> None:
        """Say where a run begins; runs in the order of their documents.

        Args:
            shard: the shard's path below the folder, like ``train/cn/train_000.bin``.
            document: the run's first document in the shard, from 0.
            origin: one of the names.
            position: documents of this origin, type and split that come before it.
        """
        self._entries.setdefault(shard, []).append(_Entry(document, self._number[origin], position))

    def of(self, shard: str, document: int) -> str:
        """The raw file of a document.

        Args:
            shard: the shard's path below the folder.
            document: its number in the shard, from 0.

        Raises:
            DataError: there is no such shard.
        """
        entries = self._of(shard)
        return self._names[entries[bisect_right(entries, document, key=lambda entry: entry.document) - 1].origin]

    def of_shard(self, shard: str) -> list[str]:
        """All raw files of a shard, in the order of their documents."""
        return list(dict.fromkeys(self._names[entry.origin] for entry in self._of(shard)))

    def in_order(self, documents: Mapping[str, int]) -> list[DocumentRun]:
        """The runs of some shards of one type and split in the order that does not depend on the grouping.

        Args:
            documents: path of a shard below the folder to how many documents it has.

        Raises:
            DataError: there is no such shard, or it has fewer documents than are told of.
        """
        runs = []
        for shard, count in documents.items():
            entries = self._of(shard)
            if count < entries[-1].document:
                raise self._does_not_fit(f"{shard} has {count} documents, and here are more of them")
            stops = [*(entry.document for entry in entries[1:]), count]
            for entry, stop in zip(entries, stops, strict=True):
                runs.append((entry.origin, entry.position, DocumentRun(shard, entry.document, stop)))
        return [run for _, _, run in sorted(runs)]

    def save(self, folder: str | Path) -> None:
        """Write ``origins.json`` into a folder of shards, in one step."""
        shards = {shard: [tuple(entry) for entry in entries] for shard, entries in self._entries.items()}
        content = orjson.dumps({"origins": self._names, "shards": shards}) + b"\n"
        write_file(Path(folder) / ORIGINS, content)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the ``origins.json`` of a folder of shards.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = Path(folder) / ORIGINS
        try:
            content = orjson.loads(path.read_bytes())
            names = content["origins"]
            result = cls(names, path)
            for number, (shard, entries) in enumerate(content["shards"].items()):
                for document, origin, *position in entries:
                    # The first datasets had no positions: there the order of the shards is that of the documents.
                    result.add(shard, document, names[origin], position[0] if position else number)
        except FileNotFoundError:
            raise DataError("this folder does not say where its documents come from", file=path) from None
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"damaged ({error})", file=path) from None
        return result

    def and_of(self, other: Origins, shards: Iterable[str]) -> Origins:
        """These, and what another says of some shards."""
        result = Origins([*self._names, *other._names])
        for origins, of_these in ((self, self.shards), (other, shards)):
            for shard in of_these:
                for document, origin, position in origins._of(shard):
                    result.add(shard, document, origins._names[origin], position)
        return result

    def _of(self, shard: str) -> list[_Entry]:
        if shard not in self._entries:
            raise self._does_not_fit(f"{shard} is not among the shards that it tells of")
        return self._entries[shard]

    def _does_not_fit(self, what: str) -> DataError:
        return DataError(
            what,
            file=self._file,
            hint="make the dataset again; or, if shards were put there by hand, remove this file: documents are then "
            "in the order of their shards",
        )
