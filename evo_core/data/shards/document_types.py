"""``X.bin.types``: the data type of each document of ``X.bin``, as its record named it.

JSON: ``{"types": ["cn", "en"], "runs": [[first document, number of its type], …]}``. A run lasts until the next begins;
types are numbered as they first appear.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson

from evo_core.data.shards.format import meta_path, read_meta
from evo_core.errors import DataError


def types_path(path: Path) -> Path:
    """``X.bin.types`` of ``X.bin``."""
    return path.with_name(path.name + ".types")


class TypeRuns:
    """Collects the types of documents in their order.

    Attributes:
        names: the types so far.
        documents, tokens: how many there are of each.
        counts: type to (documents, tokens).
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.documents: list[int] = []
        self.tokens: list[int] = []
        self._numbers: dict[str, int] = {}
        self._starts, self._types = array("q"), array("q")
        self._total = 0

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        return dict(zip(self.names, zip(self.documents, self.tokens, strict=True), strict=True))

    def add(self, name: str, documents: int, tokens: int) -> None:
        """The next `documents`, all of one type, with `tokens` in all."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
            self.documents.append(0)
            self.tokens.append(0)
        if not self._types or self._types[-1] != number:
            self._starts.append(self._total)
            self._types.append(number)
        self._total += documents
        self.documents[number] += documents
        self.tokens[number] += tokens

    def extend(self, names: Sequence[str], numbers: np.ndarray, lengths: np.ndarray) -> None:
        """The documents of another file: types int [documents] as `read_types` gives them, and tokens of each."""
        changes = np.flatnonzero(np.diff(numbers)) + 1
        for part, sizes in zip(np.split(numbers, changes), np.split(lengths, changes), strict=True):
            if len(part):
                self.add(names[int(part[0])], len(part), int(sizes.sum()))

    def content(self) -> bytes:
        """What the file holds."""
        runs = [list(run) for run in zip(self._starts, self._types, strict=True)]
        return orjson.dumps({"types": self.names, "runs": runs}) + b"\n"


def read_types(path: str | Path) -> tuple[tuple[str, ...], np.ndarray]:
    """The types of a ``.bin``'s documents.

    Returns:
        The names, and for each document the number of its name, int64 [documents].

    Raises:
        DataError: there are no types beside this ``.bin``, or they do not describe it.
    """
    path = Path(path)
    file = types_path(path)
    try:
        content = orjson.loads(file.read_bytes())
        names, runs = tuple(content["types"]), np.array(content["runs"], np.int64).reshape(-1, 2)
    except FileNotFoundError:
        raise DataError(
            "no types were recorded beside this token file", file=path, hint="tokenize with --type-key FIELD"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"not a readable list of types ({error})", file=file, hint=_REMAKE) from None
    documents = len(read_meta(meta_path(path)))
    starts, numbers = runs[:, 0], runs[:, 1]
    sizes = np.diff(np.append(starts, documents))
    fits = (not documents or (len(starts) > 0 and starts[0] == 0)) and not (sizes < 0).any()
    known = not len(numbers) or 0 <= numbers.min() <= numbers.max() < len(names)
    if not fits or not known or not all(isinstance(name, str) for name in names):
        raise DataError(f"the types do not fit the {documents} documents of {path.name}", file=file, hint=_REMAKE)
    return names, np.repeat(numbers, sizes)


_REMAKE = "tokenize the raw file again"
