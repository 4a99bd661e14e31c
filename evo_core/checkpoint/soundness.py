"""Whether a checkpoint is as its manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from evo_core.checkpoint.explained import explained
from evo_core.checkpoint.manifest import ALWAYS, Manifest, read_manifest
from evo_core.checkpoint.records import BLOCK, Digests, FileRecord
from evo_core.errors import DamagedError
from evo_core.storage.files import below, file_sizes, open_file
from evo_core.storage.location import Location

_STATES = "optimizer/"
_PARTS = ("model/", _STATES, "tokenizer/")
"""Folders of which every file is read; what a user puts beside them is theirs."""


def check_listed(folder: Location, manifest: Manifest, *, without: str | None = None) -> None:
    """Check that what a manifest names is there with its size, and that it names every file that is read, so that none
    goes without its digest; no file is opened.

    Args:
        without: what the paths of files begin with that are not read, and need not be there.

    Raises:
        DamagedError: it is not.
        CheckpointError: the store does not answer.
    """
    with explained(folder):
        there = file_sizes(folder)
    read = {path for path in there if path.startswith(_PARTS)}
    if unnamed := sorted((read | set(ALWAYS)) - set(manifest.files)):
        raise DamagedError(f"damaged manifest: it does not name {', '.join(unnamed[:3])}", file=folder)
    files = {name: file for name, file in manifest.files.items() if without is None or not name.startswith(without)}
    if problems := wrong_sizes(files, there):
        raise damaged(folder, problems)


def wrong_sizes(files: Mapping[str, FileRecord], there: Mapping[str, int]) -> list[str]:
    """What is wrong with the files of a folder by their sizes, one sentence each."""
    problems = []
    for name, record in files.items():
        if name not in there:
            problems.append(f"{name} is missing")
        elif there[name] != record.size:
            problems.append(f"{name} has {there[name]} bytes instead of {record.size}")
    return problems


def check_weights(folder: Location) -> Manifest:
    """Check a checkpoint but for its optimizer, and but for the files that are compared while they are read; any
    process may do so alone.

    Raises:
        DamagedError: it is incomplete or damaged.
        CheckpointError: the store does not answer.
    """
    manifest = read_manifest(folder)
    check_listed(folder, manifest, without=_STATES)
    names = [name for name in manifest.files if not name.startswith(_STATES)]
    if problems := damage(folder, manifest, unchecked(manifest, names)):
        raise damaged(folder, problems)
    return manifest


def unchecked(manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Those of the files that nothing is compared with while they are read: small ones, and all of older versions."""
    return [name for name in names if not manifest.files[name].by_block]


def damaged(folder: Location, problems: Iterable[str]) -> DamagedError:
    """The error that says what is wrong with a checkpoint."""
    return DamagedError(f"damaged: {'; '.join(problems)}", file=folder)


def damage(folder: Location, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Read the named files through; one sentence for each that is not as it was written.

    Raises:
        CheckpointError: the store does not answer.
    """
    with explained(folder):
        there = file_sizes(folder)
    problems = []
    for name in names:
        wanted, file = manifest.files[name], below(folder, name)
        if wrong := wrong_sizes({name: wanted}, there):
            problems += wrong
            continue
        try:
            with explained(file):
                if _read_through(file, wanted) != wanted:
                    problems.append(f"{name} does not have the digest it was written with")
        except DamagedError as error:
            problems.append(f"{name} {error.message}")
    return problems


def _read_through(file: Location, like: FileRecord) -> FileRecord:
    """The record of a file by the kind of digest that another record has."""
    blocks, whole = Digests(), hashlib.sha256()
    size = 0
    with open_file(file) as stream:
        while content := stream.read(BLOCK):
            size += len(content)
            if like.by_block:
                blocks.update(memoryview(content))
            else:
                whole.update(content)
    return blocks.record() if like.by_block else FileRecord(size, f"sha256:{whole.hexdigest()}")
