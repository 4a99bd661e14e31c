"""Which type of text a document is: by the path of its file, by a field of its record, or by looking at it.

A type is a name that the user chooses (``cn``, ``en``, ``code``, …); a dataset has a folder for each.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from evo_core.data.shards.format import BinReader
from evo_core.errors import DataError

Route = Literal["path", "field", "detect"]
Others = Literal["error", "drop"]
ROUTES: tuple[str, ...] = get_args(Route)


@dataclass(frozen=True)
class TypeRouting:
    """How documents get their types; plain values, so that it can be sent to another process.

    Attributes:
        by: ``path``: every document of a file has the file's type; ``field``: the types that `tokenize_file`
            wrote beside the tokens (see `TokenizeSpec.type_key`); ``detect``: what `Detector` sees in the text.
        tokenizer: decodes tokens to text, for ``detect``.
        types: types to take; None takes every type there is.
        others: a document of no such type is an ``error``, or dropped and counted.
    """

    by: Route = "path"
    tokenizer: Path | None = None
    types: frozenset[str] | None = None
    others: Others = "error"


@dataclass(frozen=True)
class DocumentTypes:
    """The types of one file's documents.

    Attributes:
        names: the types that occur.
        numbers: int16 [documents], positions in `names`.
    """

    names: tuple[str, ...]
    numbers: np.ndarray


def type_of_path(path: str, patterns: Mapping[str, str]) -> str:
    """The type of the first pattern that matches a raw path, else the path's first folder.

    Args:
        path: relative, with forward slashes: ``en/a.txt``.
        patterns: shell pattern to type; ``*`` matches slashes as well.
    """
    for pattern, name in patterns.items():
        if fnmatch.fnmatchcase(path, pattern):
            return name
    return path.partition("/")[0]


def document_types(reader: BinReader, routing: TypeRouting, of_path: str) -> DocumentTypes:
    """The type of every document of a token file.

    Args:
        of_path: the type of the file, for ``path``.

    Raises:
        DataError: there are no types beside the tokens, or the text cannot be decoded.
    """
    documents = len(reader)
    if routing.by == "path":
        return DocumentTypes((of_path,), np.zeros(documents, np.int16))
    if routing.by == "field":
        return _recorded_types(reader)
    from evo_core.data.dataset.detect import detector

    if routing.tokenizer is None:
        raise DataError("to detect types, tokens must be decoded: a tokenizer is needed", key="tokenizer")
    return _numbered(detector(routing.tokenizer).types(reader))


def check_type_name(name: str, origin: str) -> None:
    """Require a name that a folder can have.

    Raises:
        DataError: naming the raw file that brought it.
    """
    if not name or name.startswith(".") or Path(name).name != name or not name.isprintable():
        raise DataError(f"{name!r} is no name for a data type: it names a folder", file=origin)


def _recorded_types(reader: BinReader) -> DocumentTypes:
    from evo_core.data.shards.document_types import read_types

    names, numbers = read_types(reader.path)
    return DocumentTypes(names, numbers.astype(np.int16))


def _numbered(types: list[str]) -> DocumentTypes:
    names = sorted(set(types))
    numbers = {name: number for number, name in enumerate(names)}
    return DocumentTypes(tuple(names), np.array([numbers[name] for name in types], np.int16))
