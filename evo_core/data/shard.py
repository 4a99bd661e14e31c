"""From many small ``.bin`` files to shards of a target size, split into a train and a valid part.

::

    out/train/<type>/train_000.bin(.meta), train_001.bin(.meta), …
    out/valid/<type>/train_000.bin(.meta), …
    out/origins.json

Whether a document is held out follows from its tokens and the seed alone, so it does not change when files are
regrouped, and copies of a document are never on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from evo_core.data.format import BinReader, BinWriter, encode_line
from evo_core.data.origins import Origins
from evo_core.errors import DataError

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")


@dataclass(frozen=True)
class ShardSource:
    """A tokenized raw file.

    Attributes:
        type: data type its documents belong to (``cn``, ``en``, ``code``, or any name).
        bin_path: its ``.bin``.
        origin: name of the raw file, as a reader should see it. The order of the documents follows it.
    """

    type: str
    bin_path: Path
    origin: str


@dataclass
class _Plan:
    """A source with, for each document, whether it is held out (bool [documents])."""

    source: ShardSource
    reader: BinReader
    held_out: np.ndarray

    def side(self, split: Split) -> np.ndarray:
        """Indices of the documents on one side."""
        return np.flatnonzero(self.held_out if split == "valid" else ~self.held_out)


def write_shards(
    sources: Sequence[ShardSource],
    out: str | Path,
    *,
    valid_fraction: float,
    shard_tokens: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Group the sources by type into shards below `out`.

    Every document of every source goes into exactly one shard. Within a type and side, documents follow the
    order of their origins and, in one origin, of its lines. A shard is closed by the document with which it
    reaches `shard_tokens`.

    Args:
        sources: tokenized files, in any order.
        out: a folder without shards.
        valid_fraction: share of the documents held out, 0 <= valid_fraction < 1; 0 writes no valid part.
        shard_tokens: target size of a shard.
        seed: chooses another held-out part.

    Returns:
        Statistics as plain data: ``types`` has for each type its ``documents`` and ``tokens``, and the same for
        its ``train`` and ``valid`` part; ``shards`` has for each shard its ``path`` below `out`, ``type``,
        ``split``, ``documents``, ``tokens``, ``bytes`` and ``origins``, the raw files behind it.

    Raises:
        DataError: there are no documents, a type would have none on one side, a file is damaged or `out` is in
            use. Nothing is written then.
    """
    out = Path(out)
    if not 0 <= valid_fraction < 1:
        raise DataError(f"must be at least 0 and below 1, not {valid_fraction}", key="valid_fraction")
    if shard_tokens < 1:
        raise DataError(f"must be at least 1, not {shard_tokens}", key="shard_tokens")
    if any((out / split).exists() for split in SPLITS):
        raise DataError("shards are already here", file=out, hint="write into an empty folder")
    plans: dict[str, list[_Plan]] = {}
    for source in sorted(sources, key=lambda source: (source.type, source.origin, str(source.bin_path))):
        _check_type_name(source)
        reader = BinReader(source.bin_path)
        held_out = np.fromiter(_held_out(reader, valid_fraction, seed), bool, len(reader))
        plans.setdefault(source.type, []).append(_Plan(source, reader, held_out))
    statistics = {name: _statistics(of_type) for name, of_type in plans.items()}
    _check_sides(statistics, valid_fraction)

    origins = Origins()
    shards = [
        shard
        for name, of_type in plans.items()
        for split in SPLITS
        for shard in _write_side(of_type, split, out, name, shard_tokens, origins)
    ]
    origins.save(out)
    return {"types": statistics, "shards": shards}


def _held_out(reader: BinReader, valid_fraction: float, seed: int) -> Iterator[bool]:
    """For each document, whether the hash of its line is in the lowest `valid_fraction` of all hashes."""
    limit = int(valid_fraction * 2**64)
    for document in range(len(reader)):
        yield xxhash.xxh3_64_intdigest(_line(reader, document), seed=seed) < limit


def _line(reader: BinReader, document: int) -> bytes:
    """The document's line in our spelling, which is a copy of nearly every line there is."""
    line = reader.line(document)
    if (
        line.startswith(b'{"tokens": [')
        and line.endswith(b"]}")
        and line.count(b", ") == line.count(b",") == reader.lengths[document] - 1
    ):
        return line + b"\n"
    return encode_line(reader.tokens(document))


def _statistics(plans: list[_Plan]) -> dict[str, Any]:
    """Documents and tokens of a type, in all and on each side."""
    sides = {}
    for split in SPLITS:
        chosen = [plan.reader.lengths[plan.side(split)] for plan in plans]
        sides[split] = {"documents": sum(map(len, chosen)), "tokens": sum(int(part.sum()) for part in chosen)}
    return {key: sum(side[key] for side in sides.values()) for key in ("documents", "tokens")} | sides


def _check_sides(statistics: dict[str, dict[str, Any]], valid_fraction: float) -> None:
    if not any(of_type["documents"] for of_type in statistics.values()):
        raise DataError("there is not a single document to shard")
    for name, of_type in statistics.items():
        for split in SPLITS:
            if of_type[split]["documents"] or (split == "valid" and valid_fraction == 0):
                continue
            raise DataError(
                f"type {name}: too few documents ({of_type['documents']}) for valid_fraction {valid_fraction}: "
                f"the {split} part would have none",
                key="valid_fraction",
                hint=f"give more documents of type {name}, or another valid_fraction",
            )


def _check_type_name(source: ShardSource) -> None:
    if not source.type or source.type.startswith(".") or Path(source.type).name != source.type:
        raise DataError(f"{source.type!r} is no name for a data type: it names a folder", file=source.origin)


def _write_side(
    plans: list[_Plan], split: Split, out: Path, name: str, shard_tokens: int, origins: Origins
) -> Iterator[dict[str, Any]]:
    """Write one side of one type; yields each shard when it is complete."""
    writer: BinWriter | None = None
    with ExitStack() as unfinished:
        number = 0
        for plan in plans:
            for document in plan.side(split):
                if writer is None:
                    path = out / split / name / f"train_{number:03d}.bin"
                    writer = unfinished.enter_context(BinWriter(path))
                    number += 1
                origins.add(_relative(writer, out), writer.documents, plan.source.origin)
                writer.write_line(_line(plan.reader, document), int(plan.reader.lengths[document]))
                if writer.tokens >= shard_tokens:
                    unfinished.close()
                    yield _shard(writer, out, name, split, origins)
                    writer = None
    if writer is not None:
        yield _shard(writer, out, name, split, origins)


def _relative(writer: BinWriter, out: Path) -> str:
    return writer.path.relative_to(out).as_posix()


def _shard(writer: BinWriter, out: Path, name: str, split: Split, origins: Origins) -> dict[str, Any]:
    path = _relative(writer, out)
    return {
        "path": path,
        "type": name,
        "split": split,
        "documents": writer.documents,
        "tokens": writer.tokens,
        "bytes": writer.path.stat().st_size,
        "origins": origins.of_shard(path),
    }
