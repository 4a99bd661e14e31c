"""Which shards a dataset keeps from the one before it, and what it writes anew.

A shard is kept when every unit it is made of is still there. What is left of the others, and the units that are new,
is written into new shards of the target size. So the bytes written follow from what changed.

Refreshes leave shards below the target behind them. As soon as a type has more than `MAX_SMALL_SHARDS` shards below
half the target on one side, all of these are written anew together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evo_core.data.dataset.inventory import DROPPED, SPLITS, Inventory, ShardSource, Unit
from evo_core.data.dataset.previous_version import Piece, PreviousVersion

MAX_SMALL_SHARDS = 8


class Load(NamedTuple):
    """A piece of a unit that goes into a new shard, and where its documents are read.

    Attributes:
        piece: documents [start, stop) of a unit.
        shard: the former shard that holds it; empty: its token file.
        first: its first document in that shard.
        tokens: about how many tokens it has.
    """

    piece: Piece
    shard: str
    first: int
    tokens: int


@dataclass(frozen=True)
class Side:
    """The shards of one type on one side.

    Attributes:
        type, split: which.
        kept: former shards, by their paths, and what they are made of in the new numbers.
        loads: what is written anew, in the order of the documents.
    """

    type: str
    split: str
    kept: dict[str, list[Piece]]
    loads: list[Load]


def group(
    sources: Sequence[ShardSource], inventory: Inventory, shard_tokens: int, earlier: PreviousVersion | None
) -> list[Side]:
    """Decide for every type and side, sorted, what is kept and what is written."""
    units = list(inventory.units())
    sides: dict[tuple[str, str], Side] = {
        (name, split): Side(name, split, {}, [])
        for name in sorted({unit.type for unit in units if unit.split != DROPPED})
        for split in SPLITS
    }
    renumbered = _renumbered(sources, inventory, earlier) if earlier else {}
    for path, pieces in earlier.pieces.items() if earlier else ():
        _place(path, pieces, earlier, renumbered, sides)  # type: ignore[arg-type]
    for side in sides.values():
        _merge_small(side, shard_tokens, earlier.shards if earlier else {})
    carried = set(renumbered.values())
    for number, unit in enumerate(units):
        if number not in carried and unit.documents and unit.split != DROPPED:
            load = Load(Piece(number, 0, unit.documents), "", 0, unit.tokens)
            sides[unit.type, unit.split].loads.append(load)
    for side in sides.values():
        side.loads.sort(key=lambda load: load.piece)
    return list(sides.values())


def _renumbered(sources: Sequence[ShardSource], inventory: Inventory, earlier: PreviousVersion) -> dict[int, int]:
    """Number of a former unit to its number now, for those that are still the same."""
    result: dict[int, int] = {}
    first = 0
    for source, row in zip(sources, inventory.rows, strict=True):
        number = earlier.number(source)
        if number is not None:
            then = {_same(unit): n for n, unit in enumerate(earlier.rows[number].units, earlier.first_unit[number])}
            for now, unit in enumerate(row.units, first):
                if (old := then.get(_same(unit))) is not None:
                    result[old] = now
        first += len(row.units)
    return result


def _same(unit: Unit) -> tuple[str, str, str]:
    return unit.type, unit.split, unit.mask


def _place(
    path: str,
    pieces: Sequence[Piece],
    earlier: PreviousVersion,
    renumbered: Mapping[int, int],
    sides: Mapping[tuple[str, str], Side],
) -> None:
    """Keep a former shard, or take what is left of it."""
    shard = earlier.shards[path]
    side = sides.get((shard["type"], shard["split"]))
    if side is None:
        return  # nothing of this type is left
    now = [Piece(renumbered[piece.unit], *piece[1:]) for piece in pieces if piece.unit in renumbered]
    if len(now) == len(pieces):
        side.kept[path] = now
        return
    side.loads.extend(_loads(path, pieces, shard, renumbered))


def _loads(path: str, pieces: Sequence[Piece], shard: Mapping[str, int], renumbered: Mapping[int, int]) -> list[Load]:
    loads, first = [], 0
    for unit, start, stop in pieces:
        if unit in renumbered:
            tokens = shard["tokens"] * (stop - start) // shard["documents"]
            loads.append(Load(Piece(renumbered[unit], start, stop), path, first, tokens))
        first += stop - start
    return loads


def _merge_small(side: Side, shard_tokens: int, shards: Mapping[str, Mapping[str, int]]) -> None:
    small = [path for path in side.kept if shards[path]["tokens"] < shard_tokens / 2]
    if len(small) <= MAX_SMALL_SHARDS:
        return
    for path in small:
        pieces = side.kept.pop(path)
        side.loads.extend(_loads(path, pieces, shards[path], {piece.unit: piece.unit for piece in pieces}))
