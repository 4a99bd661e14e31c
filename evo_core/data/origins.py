"""Which raw file each document of a shard comes from: ``origins.json`` beside the shards.

::

    {"origins": ["a.txt", "b.jsonl"],
     "shards": {"train/cn/train_000.bin": [[0, 0], [120, 1]]}}

says that the first shard's documents 0 to 119 come from ``a.txt`` and the others from ``b.jsonl``.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Self

import orjson

from evo_core.errors import DataError

_NAME = "origins.json"


class Origins:
    """Runs of documents with one origin, for each shard."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._number: dict[str, int] = {}
        self._runs: dict[str, list[tuple[int, int]]] = {}

    @property
    def shards(self) -> tuple[str, ...]:
        """All shards, by their paths below the folder."""
        return tuple(self._runs)

    def add(self, shard: str, document: int, origin: str) -> None:
        """Say where a shard's document comes from; documents in their order."""
        number = self._number.setdefault(origin, len(self._names))
        if number == len(self._names):
            self._names.append(origin)
        runs = self._runs.setdefault(shard, [])
        if not runs or runs[-1][1] != number:
            runs.append((document, number))

    def of(self, shard: str, document: int) -> str:
        """The raw file of a document.

        Args:
            shard: the shard's path below the folder, like ``train/cn/train_000.bin``.
            document: its number in the shard, from 0.

        Raises:
            DataError: there is no such shard.
        """
        runs = self._runs_of(shard)
        return self._names[runs[bisect_right(runs, document, key=lambda run: run[0]) - 1][1]]

    def of_shard(self, shard: str) -> list[str]:
        """All raw files of a shard, in the order of their documents."""
        return list(dict.fromkeys(self._names[number] for _, number in self._runs_of(shard)))

    def save(self, folder: str | Path) -> None:
        """Write ``origins.json`` into a folder of shards."""
        content = {"origins": self._names, "shards": self._runs}
        (Path(folder) / _NAME).write_bytes(orjson.dumps(content) + b"\n")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the ``origins.json`` of a folder of shards.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = Path(folder) / _NAME
        result = cls()
        try:
            content = orjson.loads(path.read_bytes())
            result._names = content["origins"]
            result._runs = {shard: [tuple(run) for run in runs] for shard, runs in content["shards"].items()}
        except FileNotFoundError:
            raise DataError("this folder does not say where its documents come from", file=path) from None
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"damaged ({error})", file=path) from None
        result._number = {name: number for number, name in enumerate(result._names)}
        return result

    def _runs_of(self, shard: str) -> list[tuple[int, int]]:
        if shard not in self._runs:
            raise DataError(f"{shard} is not among the shards of this folder")
        return self._runs[shard]
