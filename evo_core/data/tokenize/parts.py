"""Cutting the work of tokenizing into parts: a large file is shared by many workers, many small files are few parts.

Large plain files are cut into ranges of lines; neighbours that are small and go into one output are done together. The
parts of an output lie in a hidden folder beside it, and are put behind one another when all are there.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

from evo_core.cores import cores
from evo_core.data.raw.documents import can_be_split
from evo_core.data.tokenize.tokenize_file import TokenizeResult, TokenizeSpec, join
from evo_core.storage.atomic import draft_name
from evo_core.storage.files import delete, file_size

PART_BYTES = 8 << 20
"""Least bytes of a range that a file is cut into: some seconds of work."""
MOST_PART_BYTES = 64 << 20
"""More would gain nothing, and be a long wait for the progress bar and for a stop."""
PARTS_A_WORKER = 4
"""Enough that all workers end at about the same time."""


@dataclass(frozen=True)
class Part:
    """What one worker does at a time: raw files, or a range of one, to a token file.

    Attributes:
        specs: what is tokenized, in order.
        output: the token file; that of the caller where it is the only part of it, else a hidden one.
        size: bytes of input.
        hidden: whether it is a hidden one.
        lease: while this file is there, somebody waits for the work. A file, since a worker may be on another
            machine (Dask), where no signal and no event of this process reaches it.
    """

    specs: tuple[TokenizeSpec, ...]
    output: Path
    size: float
    hidden: bool
    lease: Path


@dataclass
class Output:
    """One ``.bin`` to make of its parts."""

    path: Path
    parts: list[Part]
    results: dict[int, TokenizeResult] = field(default_factory=dict)

    def add(self, number: int, result: TokenizeResult) -> TokenizeResult | None:
        """Take the result of a part; after the last one, the result of the whole."""
        self.results[number] = result
        if len(self.results) < len(self.parts):
            return None
        if not self.parts[0].hidden:
            return result
        specs = self.parts[0].specs
        made = join(
            [part.output for part in self.parts], [r for _, r in sorted(self.results.items())], self.path, specs
        )
        self.clean()
        return made

    def clean(self) -> None:
        """Remove the hidden parts."""
        if self.parts[0].hidden:
            delete(self.parts[0].output.parent)


def size_of(spec: TokenizeSpec) -> int:
    """Bytes of input; at least 1, since shares are taken of it."""
    if spec.byte_range is not None:
        return spec.byte_range[1] - spec.byte_range[0]
    return max(file_size(spec.input), 1)


class Cutting:
    """How work is cut into parts.

    Attributes:
        total: bytes of input in all.
        workers: that share it.
        lease: see `Part`.

    Args:
        sizes: bytes of each file.
        workers: None is one a core, or with an executor as many as it has.
        executor: what carries out the work, if no pool of this machine.
        folder: where the lease lies; all workers must see it.
    """

    def __init__(self, sizes: Sequence[int], workers: int | None, executor: Executor | None, folder: Path) -> None:
        self.total = sum(sizes)
        self.workers = workers or cores()
        # How many workers an executor has is its own affair: many parts serve all.
        share = PART_BYTES if executor is not None and workers is None else self.total / self.workers / PARTS_A_WORKER
        self.cuts = self.workers > 1 or executor is not None
        self.part = min(max(PART_BYTES, share), MOST_PART_BYTES) if self.cuts else math.inf
        # No draft, which whoever tidies up would take for garbage: what it says is true while this process lives.
        self.lease = folder / f".{uuid.uuid4().hex[:12]}.running"

    def output(self, path: Path, specs: Sequence[TokenizeSpec], sizes: Sequence[int]) -> Output:
        """The parts of one output."""
        groups: list[tuple[list[TokenizeSpec], float]] = []
        for spec, size in zip(specs, sizes, strict=True):
            ranges = self._ranges(spec, size)
            # A message to a worker and a file of its own cost more than tokenizing a small file. Neighbours alone, for
            # the output keeps the order of the specs.
            if len(ranges) == 1 and groups and groups[-1][1] + size <= self.part:
                groups[-1] = ([*groups[-1][0], spec], groups[-1][1] + size)
            else:
                groups += [([of_range], size / len(ranges)) for of_range in ranges]
        if len(groups) == 1:
            return Output(path, [Part(tuple(groups[0][0]), path, groups[0][1], False, self.lease)])
        folder = draft_name(path)
        return Output(
            path,
            [Part(tuple(part), folder / f"{n}.bin", size, True, self.lease) for n, (part, size) in enumerate(groups)],
        )

    def _ranges(self, spec: TokenizeSpec, size: int) -> list[TokenizeSpec]:
        """The spec, or where its file is large enough for several workers, ranges of it."""
        if not self.cuts or spec.byte_range is not None or size < 2 * self.part or not can_be_split(spec.input):
            return [spec]
        # Any byte will do for an edge: a line belongs to the range that it begins in.
        count = int(-(-size // self.part))
        edges = [size * number // count for number in range(count)] + [size]
        return [replace(spec, byte_range=(edges[n], edges[n + 1])) for n in range(count)]
