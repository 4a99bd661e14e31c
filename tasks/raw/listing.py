"""The listing that a raw artifact is: which files, where they lie, what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evo_core.errors import DataError
from tasks.store import Artifact
from tasks.store.json_file import read_json, write_json

LISTING = "files.json"


@dataclass(frozen=True)
class RawFile:
    """One file of raw text.

    Attributes:
        path: relative to the raw folder, with forward slashes; its first part names the type of text by default.
        uri: where its bytes lie.
        size: bytes.
        digest: blake3 of the bytes, hex; of an object in a store ``etag:<its ETag>:<its size>``.
    """

    path: str
    uri: str
    size: int
    digest: str


def object_digest(etag: str, size: int) -> str:
    """The digest of an object in a store."""
    return f"etag:{etag}:{size}"


def etag_of(file: RawFile) -> str | None:
    """The ETag that an object had when it was listed; None for a local file."""
    kind, _, rest = file.digest.partition(":")
    return rest.rpartition(":")[0] if kind == "etag" else None


def write_listing(folder: Path, files: Sequence[RawFile]) -> None:
    """Write the listing into an attempt folder."""
    write_json(folder / LISTING, [vars(file) for file in files], indent=None)


def read_listing(raw: Artifact) -> list[RawFile]:
    """The files of a raw artifact; a uri inside the artifact is found wherever the store has moved to.

    Raises:
        DataError: it has no listing.
    """
    entries = read_json(raw.path / LISTING)
    if entries is None:
        raise DataError(f"a raw artifact without {LISTING}", file=raw.path)
    return [RawFile(**{**entry, "uri": _absolute(entry["uri"], raw.path)}) for entry in entries]


def _absolute(uri: str, folder: Path) -> str:
    return str(folder / uri.removeprefix("./")) if uri.startswith("./") else uri
