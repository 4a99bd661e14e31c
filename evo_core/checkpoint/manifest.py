"""The manifest: what a complete checkpoint consists of, with a digest of every file. Writing it is the commit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evo_core.checkpoint.folder import MANIFEST
from evo_core.errors import CheckpointError

FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of a file."""

    size: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What is in a checkpoint.

    Attributes:
        step: steps behind it.
        tokens: training tokens behind it, over all ranks.
        data_digest: of the order of the training data.
        files: path inside the folder to size and digest.
        tokenizer: path of the tokenizer inside the folder, where there is one.
        written_by: ranks and library versions, for people.
    """

    step: int
    tokens: int
    data_digest: str
    files: dict[str, FileRecord]
    tokenizer: str | None = None
    written_by: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_here(self) -> bool:
        """Whether a training job wrote it; what is converted from another system has no order of training data."""
        return bool(self.data_digest)


def file_record(path: Path) -> FileRecord:
    """Read a file through for its record."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, f"sha256:{digest}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Complete a checkpoint: the manifest appears whole, and only where there is none."""
    draft = folder / f".{MANIFEST}.{os.getpid()}"
    with draft.open("w") as stream:
        json.dump({"format": FORMAT, **asdict(manifest)}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(draft, folder / MANIFEST)
    finally:
        draft.unlink()
    _sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete checkpoint.

    Raises:
        CheckpointError: there is none, or it is not one.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text())
        if raw.pop("format") != FORMAT:
            raise CheckpointError("written by another version of Evo", file=path)
        files = {name: FileRecord(**record) for name, record in raw.pop("files").items()}
        return Manifest(**raw, files=files)
    except FileNotFoundError:
        raise CheckpointError(f"incomplete: there is no {MANIFEST}", file=folder) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"damaged manifest: {error}", file=path) from error


def damage(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """What is wrong with the named files, one sentence each; nothing where they are as they were written."""
    problems = []
    for name in names:
        wanted, path = manifest.files[name], folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != wanted.size:
            problems.append(f"{name} has {size} bytes instead of {wanted.size}")
        elif file_record(path) != wanted:
            problems.append(f"{name} does not have the digest it was written with")
    return problems


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
