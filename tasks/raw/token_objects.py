"""The tokens of raw files as objects of the store: found again by what they depend on, and named by an index.

An object is a folder that holds `TOKENS` and, written last, `DONE` with its counts. What a step makes is the index
alone: a row for each raw file, with the id of its object and the object's counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evo_core.errors import DataError
from tasks.raw.listing import RawFile
from tasks.store import Artifact
from tasks.store.digests import combine
from tasks.store.json_file import read_json

INDEX = "index.json"
TOKENS = "tokens.bin"
DONE = "object.json"
"""Written last into an object's folder: the object is there once this is."""


def object_ids(files: Sequence[RawFile], same: Sequence[tuple[str, str]]) -> list[str]:
    """For each file, what its tokens depend on: its content, its format, and what is the same for all of a step.

    Args:
        same: by name: the tokenizer, the kind and its version, the parameters.
    """
    return [combine([("file", file.digest), ("suffix", _suffix(file.path)), *same]) for file in files]


def index_rows(
    files: Sequence[RawFile], ids: Sequence[str], counts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of an index.

    Args:
        ids: the object of each file.
        counts: of each object.
    """
    return [
        {"path": file.path, "uri": file.uri, "digest": file.digest, "bytes": file.size, "object": object_id}
        | dict(counts[object_id])
        for file, object_id in zip(files, ids, strict=True)
    ]


def read_index(tokens: Artifact) -> list[dict[str, Any]]:
    """The rows of a tokens artifact: ``path``, ``uri``, ``digest``, ``bytes``, ``object``, and the object's counts.

    Raises:
        DataError: it has no index.
    """
    rows = read_json(tokens.path / INDEX)
    if rows is None:
        raise DataError(f"a tokens artifact without {INDEX}", file=tokens.path)
    return rows


def _suffix(path: str) -> str:
    """What a file's name says of its format: ``.jsonl.zst``."""
    return "".join(f".{part}" for part in path.rpartition("/")[2].lstrip(".").split(".")[1:][-2:])
