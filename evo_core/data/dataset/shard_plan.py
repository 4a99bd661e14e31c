"""The shard plan: which shards a dataset keeps from its previous version, and what it writes anew.

A shard is kept when every selection it is made of is still there. What is left of the others, and the selections that
are new, is written into new shards of the target size. So the bytes written follow from what changed.

Refreshes leave shards below the target behind them. As soon as a type has more than `MAX_SMALL_SHARDS` shards below
half the target in one split, all of these are written anew together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evo_core.data.dataset.inventory import DROPPED, Inventory, Selection, ShardSource
from evo_core.data.dataset.previous_version import PreviousVersion, SelectionPart
from evo_core.data.shards.folder import SPLITS

MAX_SMALL_SHARDS = 8
"""A trade: merging sooner writes the same documents again more often, merging later leaves more small files to open."""


class PlannedPart(NamedTuple):
    """A part of a selection that goes into a new shard, and where its documents are read.

    Attributes:
        part: documents [start, stop) of a selection.
        shard: the shard of the previous version that holds it; empty: its token file.
        first: its first document in that shard.
        tokens: about how many tokens it has.
    """

    part: SelectionPart
    shard: str
    first: int
    tokens: int


@dataclass(frozen=True)
class ShardPlan:
    """The shards of one type and split.

    Attributes:
        type, split: which.
        kept: shards of the previous version, by their paths, and what they are made of in the new numbers.
        to_write: what is written anew, in the order of the documents.
    """

    type: str
    split: str
    kept: dict[str, list[SelectionPart]]
    to_write: list[PlannedPart]


def plan_shards(
    sources: Sequence[ShardSource], inventory: Inventory, shard_tokens: int, previous: PreviousVersion | None
) -> list[ShardPlan]:
    """Decide for every type and split, sorted, what is kept and what is written."""
    selections = list(inventory.selections())
    plans: dict[tuple[str, str], ShardPlan] = {
        (name, split): ShardPlan(name, split, {}, [])
        for name in sorted({selection.type for selection in selections if selection.split != DROPPED})
        for split in SPLITS
    }
    renumbered = _renumbered(sources, inventory, previous) if previous else {}
    for path, parts in previous.parts.items() if previous else ():
        _keep_or_take_apart(path, parts, previous, renumbered, plans)  # type: ignore[arg-type]
    for plan in plans.values():
        _merge_small(plan, shard_tokens, previous.shards if previous else {})
    carried = set(renumbered.values())
    for number, selection in enumerate(selections):
        if number not in carried and selection.documents and selection.split != DROPPED:
            whole = PlannedPart(SelectionPart(number, 0, selection.documents), "", 0, selection.tokens)
            plans[selection.type, selection.split].to_write.append(whole)
    for plan in plans.values():
        plan.to_write.sort(key=lambda planned: planned.part)
    return list(plans.values())


def _renumbered(sources: Sequence[ShardSource], inventory: Inventory, previous: PreviousVersion) -> dict[int, int]:
    """A selection's number in the previous version to its number now, for those that are still the same."""
    result: dict[int, int] = {}
    first = 0
    for source, file in zip(sources, inventory.files, strict=True):
        number = previous.number(source)
        if number is not None:
            selections = enumerate(previous.files[number].selections, previous.first_selection[number])
            then = {_same(selection): n for n, selection in selections}
            for now, selection in enumerate(file.selections, first):
                if (old := then.get(_same(selection))) is not None:
                    result[old] = now
        first += len(file.selections)
    return result


def _same(selection: Selection) -> tuple[str, str, str]:
    return selection.type, selection.split, selection.mask


def _keep_or_take_apart(
    path: str,
    parts: Sequence[SelectionPart],
    previous: PreviousVersion,
    renumbered: Mapping[int, int],
    plans: Mapping[tuple[str, str], ShardPlan],
) -> None:
    """Keep a shard of the previous version, or write what is left of it anew."""
    shard = previous.shards[path]
    plan = plans.get((shard["type"], shard["split"]))
    if plan is None:
        return  # nothing of this type is left
    now = [SelectionPart(renumbered[part.selection], *part[1:]) for part in parts if part.selection in renumbered]
    if len(now) == len(parts):
        plan.kept[path] = now
        return
    plan.to_write.extend(_parts_left(path, parts, shard, renumbered))


def _parts_left(
    path: str, parts: Sequence[SelectionPart], shard: Mapping[str, int], renumbered: Mapping[int, int]
) -> list[PlannedPart]:
    left, first = [], 0
    for selection, start, stop in parts:
        if selection in renumbered:
            tokens = shard["tokens"] * (stop - start) // shard["documents"]
            left.append(PlannedPart(SelectionPart(renumbered[selection], start, stop), path, first, tokens))
        first += stop - start
    return left


def _merge_small(plan: ShardPlan, shard_tokens: int, shards: Mapping[str, Mapping[str, int]]) -> None:
    small = [path for path in plan.kept if shards[path]["tokens"] < shard_tokens / 2]
    if len(small) <= MAX_SMALL_SHARDS:
        return
    for path in small:
        parts = plan.kept.pop(path)
        plan.to_write.extend(_parts_left(path, parts, shards[path], {part.selection: part.selection for part in parts}))
