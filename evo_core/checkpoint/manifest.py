"""The manifest: what a complete checkpoint consists of, with a digest of every file. Writing it is the commit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from evo_core.checkpoint import train_state
from evo_core.checkpoint.about import About
from evo_core.checkpoint.folder import MANIFEST
from evo_core.errors import CheckpointError
from evo_core.storage.files import create_file

FORMAT = 2
"""That is written. In format 1 the states of the optimizer are vectors; in format 2 they have the shapes of weights."""

READABLE = (1, 2)

CONFIG = "config.yaml"
TOKENIZER = "tokenizer"

_ALWAYS = (CONFIG, train_state.FILE, "model/.metadata")
"""Files that every checkpoint has."""

_PARTS = ("model", "optimizer", "tokenizer")
"""Folders of which every file is read; what a user puts beside them is theirs."""


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
        written_by: ranks and library versions, or the format it was converted from.
        about: what a training job made it by and from; None where it was converted, or an older version wrote it.
        format: one of `READABLE`.
    """

    step: int
    tokens: int
    data_digest: str
    files: dict[str, FileRecord]
    tokenizer: str | None = None
    written_by: dict[str, Any] = field(default_factory=dict)
    about: About | None = None
    format: int = FORMAT

    @property
    def trained_here(self) -> bool:
        """Whether a training job wrote it, and not a conversion from another system's format."""
        return self.written_by.get("converted_from", "evo") == "evo"


def file_record(path: Path) -> FileRecord:
    """Read a file through for its record."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, f"sha256:{digest}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Complete a checkpoint: the manifest appears whole, and only where there is none.

    Raises:
        OSError: it cannot be written, or there is one.
    """
    path = folder / MANIFEST
    if not create_file(path, json.dumps({"format": manifest.format, **asdict(manifest)}, indent=1, allow_nan=False)):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete checkpoint.

    Raises:
        CheckpointError: there is none, or it is not one.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_twins, parse_constant=_no_number)
        if type(raw["format"]) is not int:
            raise ValueError("its format is no number")
        if raw["format"] not in READABLE:
            readable = " and ".join(map(str, READABLE))
            message = f"written by another version of Evo, in format {raw['format']}; this one reads {readable}"
            raise CheckpointError(message, file=path, hint="read it with the version that wrote it")
        files = {_inside(name): _record(**record) for name, record in raw.pop("files").items()}
        if (about := raw.pop("about", None)) is not None:
            about = About.read(about)
        manifest = Manifest(**raw, files=files, about=about)
        if not all(type(number) is int and number >= 0 for number in (manifest.step, manifest.tokens)):
            raise ValueError("step and tokens are not whole numbers")
        if manifest.tokenizer is not None:
            _inside(manifest.tokenizer)
        return manifest
    except FileNotFoundError:
        raise CheckpointError(f"incomplete: there is no {MANIFEST}", file=folder) from None
    except RecursionError:
        raise CheckpointError("damaged manifest: nested too deeply", file=path) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"damaged manifest: {error}", file=path) from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal keys one would hide the other."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice")
    return result


def _no_number(token: str) -> Any:
    raise ValueError(f"{token} is no JSON")


def _inside(name: str) -> str:
    """A path below the checkpoint's folder, in its one spelling."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
        raise ValueError(f"{name!r} is no file of the checkpoint")
    return name


def _record(size: int, digest: str) -> FileRecord:
    if type(size) is not int or not isinstance(digest, str):
        raise TypeError("the record of a file is no size with a digest")
    return FileRecord(size, digest)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the manifest names every file that is read from a checkpoint, so that none goes without its digest.

    Raises:
        CheckpointError: it does not.
    """
    try:
        files = (path for part in _PARTS for path in (folder / part).rglob("*") if path.is_file())
        there = {path.relative_to(folder).as_posix() for path in files}
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", file=folder) from error
    if unnamed := sorted((there | set(_ALWAYS)) - set(manifest.files)):
        raise CheckpointError(f"damaged manifest: it does not name {', '.join(unnamed[:3])}", file=folder / MANIFEST)


def check_weights(folder: Path) -> Manifest:
    """Read a checkpoint through, but for its optimizer, and compare it with its manifest; any process may do so alone.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if problems := damage(folder, manifest, (name for name in manifest.files if not name.startswith("optimizer/"))):
        raise damaged(folder, problems)
    return manifest


def damaged(folder: Path, problems: Iterable[str]) -> CheckpointError:
    """The error that says what is wrong with a checkpoint."""
    return CheckpointError(f"damaged: {'; '.join(problems)}", file=folder)


def damage(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """What is wrong with the named files, one sentence each; nothing where they are as they were written."""
    problems = []
    for name in names:
        wanted, path = manifest.files[name], folder / name
        try:
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif (size := path.stat().st_size) != wanted.size:
                problems.append(f"{name} has {size} bytes instead of {wanted.size}")
            elif file_record(path) != wanted:
                problems.append(f"{name} does not have the digest it was written with")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
    return problems
