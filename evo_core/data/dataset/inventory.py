"""The inventory: every document of a dataset that is about to be made, counted by raw file, type and split.

A *selection* is what a dataset takes from one token file for one type and split. Selections are what shards are made
of; one that the previous version has as well need not be read again. What the previous version knows of its files is
kept beside it, so that only new files are scanned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import xxhash

from evo_core.data.dataset.dedup import NearDuplicates, exact_duplicates, near_duplicates
from evo_core.data.dataset.routing import TypeRouting, check_type_name
from evo_core.data.dataset.scan import Scan, ScanSpec, scans
from evo_core.errors import DataError

Dedup = Literal["none", "exact", "near"]
DROPPED = "dropped"
"""The split of documents whose type is not taken: counted, never written."""


@dataclass(frozen=True)
class ShardSource:
    """A tokenized raw file.

    Attributes:
        type: data type its documents belong to (``cn``, ``en``, ``code``, or any name), where its path decides.
        bin_path: its ``.bin``.
        origin: name of the raw file, as a reader should see it; no two sources have the same. The order of the
            documents follows it.
        object: what tells its tokens from all others; without it a later dataset does not recognise the file.
    """

    type: str
    bin_path: Path
    origin: str
    object: str = ""


@dataclass(frozen=True)
class SelectionCriteria:
    """Which documents a dataset takes and where they go; see `write_shards`."""

    valid_fraction: float
    seed: int = 0
    routing: TypeRouting = field(default_factory=TypeRouting)
    dedup: Dedup = "none"
    near: NearDuplicates = field(default_factory=NearDuplicates)


class Selection(NamedTuple):
    """Documents of one token file, of one type and split: what a dataset takes from it.

    Attributes:
        split: ``train``, ``valid``, or ``dropped``.
        mask: digest of which documents of the file these are.
        documents, tokens: taken.
        exact, near: documents left out because they repeat an earlier one.
    """

    type: str
    split: str
    mask: str
    documents: int
    tokens: int
    exact: int = 0
    near: int = 0


@dataclass(frozen=True)
class FileInventory:
    """The inventory of one token file.

    Attributes:
        documents: all there are.
        repeated: digest of which of them repeat others; empty if none does.
        selections: sorted by type and split.
        document_numbers: for each selection the numbers of its documents in the file, int64 [documents]; None for a
            file that was not read now, whose documents lie in shards of the previous version.
    """

    documents: int
    repeated: str
    selections: tuple[Selection, ...]
    document_numbers: tuple[np.ndarray, ...] | None = None


@dataclass(frozen=True)
class Inventory:
    """Of all token files of a dataset.

    Attributes:
        files: one for each source, in the order of the sources.
        hashes, signatures: of all documents in their order (see `Scan`), kept for the next dataset; zero where
            a document was dropped.
    """

    files: list[FileInventory]
    hashes: np.ndarray | None
    signatures: np.ndarray | None

    def selections(self) -> Iterable[Selection]:
        """All selections, in the order in which they are numbered."""
        return (selection for file in self.files for selection in file.selections)


class KnownFile(NamedTuple):
    """What the previous version, made in the same way, knows of a source.

    Attributes:
        inventory: of its file.
        hashes, signatures: of its documents, as `Scan` has them.
    """

    inventory: FileInventory
    hashes: np.ndarray | None
    signatures: np.ndarray | None


def take_inventory(
    sources: Sequence[ShardSource],
    criteria: SelectionCriteria,
    *,
    known: Callable[[ShardSource], KnownFile | None] = lambda source: None,
    workers: int | None = None,
    on_file: Callable[[int], None] = lambda size: None,
) -> Inventory:
    """Count the documents of all sources, reading those that nothing is known of.

    Args:
        sources: sorted by origin.
        known: what the previous version knows of a source.
        workers: processes; default one a core.
        on_file: called with the size in bytes of each file that was read.

    Raises:
        DataError: a file is damaged, or a document has a type that is not to be taken.
    """
    known_files = {number: found for number, source in enumerate(sources) if (found := known(source)) is not None}
    new = _scanned(sources, criteria, [n for n in range(len(sources)) if n not in known_files], workers, on_file)
    if criteria.dedup == "none":
        none = {number: (np.zeros(len(one.lengths), bool),) * 2 for number, one in new.items()}
        files = [
            _file_inventory(sources[n], new.pop(n), criteria.routing, *none[n])
            if n in new
            else known_files[n].inventory
            for n in range(len(sources))
        ]
        return Inventory(files, None, None)
    return _without_repeats(sources, criteria, known_files, new, workers, on_file)


def _without_repeats(
    sources: Sequence[ShardSource],
    criteria: SelectionCriteria,
    known_files: dict[int, KnownFile],
    new: dict[int, Scan],
    workers: int | None,
    on_file: Callable[[int], None],
) -> Inventory:
    counts = [
        known_files[n].inventory.documents if n in known_files else len(new[n].lengths) for n in range(len(sources))
    ]
    ends = itertools.accumulate(counts)
    slices = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    hashes, signatures = _fingerprints(sources, criteria, slices, known_files, new)
    active = (hashes != 0).any(axis=1)
    exact = exact_duplicates(hashes, active)
    close = np.zeros(len(active), bool)
    if signatures is not None:
        close = near_duplicates(signatures, active & ~exact, criteria.near)

    # A new file that comes earlier in the order, or one that went, changes which documents of a known file are the
    # repeated ones. Which documents its selections were is not kept, so that file is read again.
    changed = [
        n for n in known_files if _digest(exact[slices[n]], close[slices[n]]) != known_files[n].inventory.repeated
    ]
    new |= _scanned(sources, criteria, changed, workers, on_file)
    files = [
        _file_inventory(sources[n], new.pop(n), criteria.routing, exact[part], close[part])
        if n in new
        else known_files[n].inventory
        for n, part in enumerate(slices)
    ]
    return Inventory(files, hashes, signatures)


def _fingerprints(
    sources: Sequence[ShardSource],
    criteria: SelectionCriteria,
    slices: Sequence[slice],
    known_files: dict[int, KnownFile],
    new: dict[int, Scan],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Hashes and signatures of all documents as `Inventory` has them; those of the scans are let go.

    A hash of zeros stands for a document of a type that is dropped: it repeats nothing, and nothing repeats it.
    """
    documents = slices[-1].stop if slices else 0
    hashes = np.zeros((documents, 2), np.uint64)
    signatures = np.zeros((documents, criteria.near.permutations), np.uint16) if criteria.dedup == "near" else None
    for number, part in enumerate(slices):
        fingerprints = known_files[number] if number in known_files else new[number]
        if fingerprints.hashes is not None:
            hashes[part] = fingerprints.hashes
        if signatures is not None and fingerprints.signatures is not None:
            signatures[part] = fingerprints.signatures
        if number in new:
            hashes[part][~_taken(sources[number], new[number], criteria.routing)] = 0
            new[number] = replace(new[number], hashes=None, signatures=None)  # held once: they are most of the memory
    return hashes, signatures


def _scanned(
    sources: Sequence[ShardSource],
    criteria: SelectionCriteria,
    numbers: Sequence[int],
    workers: int | None,
    on_file: Callable[[int], None],
) -> dict[int, Scan]:
    specs = [
        ScanSpec(
            sources[number].bin_path,
            sources[number].type,
            criteria.routing,
            criteria.valid_fraction,
            criteria.seed,
            hashes=criteria.dedup != "none",
            near=criteria.near if criteria.dedup == "near" else None,
        )
        for number in numbers
    ]
    found = {}
    for number, spec, one in zip(numbers, specs, scans(specs, workers=workers), strict=True):
        found[number] = one
        on_file(spec.bin_path.stat().st_size)
    return found


def _file_inventory(
    source: ShardSource, scan: Scan, routing: TypeRouting, exact: np.ndarray, near: np.ndarray
) -> FileInventory:
    taken = _taken(source, scan, routing)
    repeated = exact | near
    selections, document_numbers = [], []
    for name in sorted(scan.types):
        of_type = scan.type_numbers == scan.types.index(name)
        splits: dict[str, np.ndarray] = {"train": of_type & ~scan.held_out, "valid": of_type & scan.held_out}
        if routing.types is not None and name not in routing.types:
            splits = {DROPPED: of_type}
        for split, here in splits.items():
            kept = np.flatnonzero(here & taken & ~repeated) if split != DROPPED else np.flatnonzero(here)
            # A file whose documents are all taken for one type and split says so, and needs no hash for a mask.
            selection = Selection(
                name,
                split,
                xxhash.xxh3_128_hexdigest(kept.astype("<i8").tobytes())
                if len(kept) < len(here)
                else f"all {len(kept)}",
                len(kept),
                int(scan.lengths[kept].sum(dtype=np.int64)),
                int((here & exact).sum()),
                int((here & near).sum()),
            )
            if selection.documents or selection.exact or selection.near:
                selections.append(selection)
                document_numbers.append(kept)
    return FileInventory(len(scan.lengths), _digest(exact, near), tuple(selections), tuple(document_numbers))


def _taken(source: ShardSource, scan: Scan, routing: TypeRouting) -> np.ndarray:
    """Which documents have a type that is taken, bool [documents].

    Raises:
        DataError: one has another, and that is an error; or a type's name cannot be used.
    """
    taken = np.ones(len(scan.lengths), bool)
    for number, name in enumerate(scan.types):
        here = scan.type_numbers == number
        if routing.types is None or name in routing.types:
            check_type_name(name, source.origin)
            continue
        if routing.others == "error" and here.any():
            raise DataError(
                f"document {int(here.argmax()) + 1} is of type {name!r}, which is not among the types to take "
                f"({', '.join(sorted(routing.types))})",
                file=source.origin,
                hint="name the type as well, map the path to a type, or drop documents of other types",
            )
        taken &= ~here
    return taken


def _digest(exact: np.ndarray, near: np.ndarray) -> str:
    """Of which documents repeat others, and how; empty if none does."""
    if not (exact.any() or near.any()):
        return ""
    return xxhash.xxh3_128_hexdigest(np.packbits(np.concatenate([exact, near])).tobytes())
