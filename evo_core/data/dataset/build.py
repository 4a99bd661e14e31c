"""From many small ``.bin`` files to shards of a target size, split into a train and a valid part.

::

    out/train/<type>/train_000.bin(.meta), train_001.bin(.meta), …
    out/valid/<type>/train_000.bin(.meta), …
    out/origins.json      which raw file each document comes from, and the order of the documents
    out/refresh/          what the next dataset starts from
    out/statistics.json   the manifest: every type and every shard; written last

Whether a document is held out follows from its tokens and the seed alone, so it does not change when files are
regrouped, and copies of a document are never in both parts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from evo_core.data.dataset.dedup import NearDuplicates
from evo_core.data.dataset.inventory import (
    DROPPED,
    Dedup,
    Inventory,
    SelectionCriteria,
    ShardSource,
    take_inventory,
)
from evo_core.data.dataset.previous_version import FOLDER, STATISTICS, PreviousVersion, save_for_next_version
from evo_core.data.dataset.routing import TypeRouting, check_type_name
from evo_core.data.dataset.shard_plan import plan_shards
from evo_core.data.dataset.writer import ShardWriter
from evo_core.data.shards.folder import SPLITS
from evo_core.data.shards.origins import ORIGINS, Origins
from evo_core.errors import DataError
from evo_core.storage.files import delete, write_file

__all__ = ["STATISTICS", "PreviousVersion", "ShardSource", "write_shards"]

OnProgress = Callable[[str, int, int], None]
"""Called with what is done (``read`` in bytes, then ``write`` in tokens), how much so far, and how much in all. An
error that it raises ends the work."""


def write_shards(
    sources: Sequence[ShardSource],
    out: str | Path,
    *,
    valid_fraction: float,
    shard_tokens: int,
    seed: int = 0,
    routing: TypeRouting | None = None,
    dedup: Dedup = "none",
    near: NearDuplicates | None = None,
    previous: PreviousVersion | None = None,
    workers: int | None = None,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Group the sources by type into shards below `out`.

    Every document that is taken goes into exactly one shard. Within a shard, documents follow the order of their
    origins and, in one origin, of its lines. A shard is closed by the document with which it reaches `shard_tokens`.

    With `previous`, only sources that it was not made from are read; its shards are linked where nothing in them
    changed, and the others written anew (see `evo_core.data.dataset.shard_plan`). The documents are the same as
    without.

    Args:
        sources: tokenized files, in any order.
        out: a folder without shards.
        valid_fraction: share of the documents held out, 0 <= valid_fraction < 1; 0 writes no valid part.
        shard_tokens: target size of a shard.
        seed: chooses another held-out part.
        routing: how documents get their types; default by the type of their source.
        dedup: which documents are left out because they repeat an earlier one (in the order of the origins, over
            all types and both splits): ``none``, ``exact`` copies, or ``near`` ones as well.
        near: what counts as nearly the same.
        previous: of a dataset that this function wrote with the same arguments but other sources.
        workers: processes that read; default one a core.
        on_progress: see `OnProgress`.

    Returns:
        What ``statistics.json`` says. ``types`` has for each type its ``documents`` and ``tokens``, the same for its
        ``train`` and ``valid`` part, and with `dedup` what was ``removed``; ``dropped`` has the documents of types
        that are not taken; ``shards`` has for each shard its ``path`` below `out`, ``type``, ``split``,
        ``documents``, ``tokens``, ``bytes``, blake3 ``digest`` and ``meta_digest``, and ``origins``, the raw files
        behind it.

    Raises:
        DataError: there are no documents, a type would have none in one split, a document's type is not taken, a
            file is damaged, the disk is full, or `out` is in use. No shards are left in `out` then.
    """
    out = Path(out)
    routing = routing or TypeRouting()
    if not 0 <= valid_fraction < 1:
        raise DataError(f"must be at least 0 and below 1, not {valid_fraction}", key="valid_fraction")
    if shard_tokens < 1:
        raise DataError(f"must be at least 1, not {shard_tokens}", key="shard_tokens")
    if any((out / split).exists() for split in SPLITS):
        raise DataError("shards are already here", file=out, hint="write into an empty folder")
    sources = _by_origin(sources, routing)
    criteria = SelectionCriteria(valid_fraction, seed, routing, dedup, near or NearDuplicates())
    inventory = _inventory(sources, criteria, previous, workers, on_progress)
    named = {source.type for source in sources} if routing.by == "path" else set()
    statistics = _statistics(
        inventory, dedup, named - {selection.type for selection in inventory.selections() if selection.split == DROPPED}
    )
    _check_splits(statistics["types"], valid_fraction, routing.types)
    try:
        statistics["shards"] = _write(sources, inventory, out, shard_tokens, previous, on_progress)
        write_file(out / STATISTICS, orjson.dumps(statistics, option=orjson.OPT_INDENT_2))
    except BaseException as error:
        for name in (*SPLITS, FOLDER, ORIGINS, STATISTICS):
            delete(out / name)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                "the disk is full: no shards were left here", file=out, hint="free some space and run again"
            ) from None
        raise
    return statistics


def _by_origin(sources: Iterable[ShardSource], routing: TypeRouting) -> list[ShardSource]:
    ordered = sorted(sources, key=lambda source: source.origin)
    for before, source in zip([None, *ordered], ordered, strict=False):
        if before is not None and before.origin == source.origin:
            raise DataError("two token files are said to come from this raw file", file=source.origin)
        if routing.by == "path":
            check_type_name(source.type, source.origin)
    return ordered


def _inventory(
    sources: Sequence[ShardSource],
    criteria: SelectionCriteria,
    previous: PreviousVersion | None,
    workers: int | None,
    on_progress: OnProgress,
) -> Inventory:
    known = {source.origin for source in sources if previous and previous.number(source) is not None}
    total = sum(s.bin_path.stat().st_size for s in sources if s.origin not in known and s.bin_path.exists())
    done = 0

    def on_file(size: int) -> None:
        nonlocal done
        done += size
        on_progress("read", done, max(total, done))

    if previous is None:
        return take_inventory(sources, criteria, workers=workers, on_file=on_file)
    return take_inventory(sources, criteria, known=previous.known, workers=workers, on_file=on_file)


def _write(
    sources: Sequence[ShardSource],
    inventory: Inventory,
    out: Path,
    shard_tokens: int,
    previous: PreviousVersion | None,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    plans = plan_shards(sources, inventory, shard_tokens, previous)
    total, done = sum(part.tokens for plan in plans for part in plan.to_write), 0

    def on_tokens(tokens: int) -> None:
        nonlocal done
        done += tokens
        on_progress("write", done, max(total, done))

    writer = ShardWriter(out, sources, inventory.files, shard_tokens, previous, on_tokens)
    shards = [shard for plan in plans for shard in writer.write(plan)]
    origins = Origins(writer.origin(part.selection) for parts in writer.parts.values() for part in parts)
    for shard in shards:
        document = 0
        for part in writer.parts[shard["path"]]:
            origins.add(shard["path"], document, writer.origin(part.selection), part.start)
            document += part.stop - part.start
    origins.save(out)
    if all(source.object for source in sources):
        save_for_next_version(out, sources, inventory, writer.parts)
    return shards


def _statistics(inventory: Inventory, dedup: Dedup, named: Iterable[str]) -> dict[str, Any]:
    """Documents and tokens of each type, in all and in each split, and what was left out."""
    types: dict[str, dict[str, Any]] = {name: _no_documents(dedup) for name in named}
    dropped: dict[str, int] = {}
    for selection in inventory.selections():
        if selection.split == DROPPED:
            dropped[selection.type] = dropped.get(selection.type, 0) + selection.documents
            continue
        of_type = types.setdefault(selection.type, _no_documents(dedup))
        for counts in (of_type, of_type[selection.split]):
            counts["documents"] += selection.documents
            counts["tokens"] += selection.tokens
        if dedup != "none":
            of_type["removed"]["exact"] += selection.exact
            of_type["removed"]["near"] += selection.near
    return {"types": dict(sorted(types.items())), **({"dropped": dict(sorted(dropped.items()))} if dropped else {})}


def _no_documents(dedup: Dedup) -> dict[str, Any]:
    counts: dict[str, Any] = {"documents": 0, "tokens": 0}
    counts |= {split: {"documents": 0, "tokens": 0} for split in SPLITS}
    return counts | ({"removed": {"exact": 0, "near": 0}} if dedup != "none" else {})


def _check_splits(types: dict[str, dict[str, Any]], valid_fraction: float, expected: frozenset[str] | None) -> None:
    if not any(of_type["documents"] for of_type in types.values()):
        raise DataError("there is not a single document to shard")
    for name in sorted((expected or set()) - set(types)):
        raise DataError(
            f"there is no document of type {name}",
            key="types",
            hint=f"types found: {', '.join(types)}",
        )
    for name, of_type in types.items():
        for split in SPLITS:
            if of_type[split]["documents"] or (split == "valid" and valid_fraction == 0):
                continue
            raise DataError(
                f"type {name}: too few documents ({of_type['documents']}) for valid_fraction {valid_fraction}: "
                f"the {split} part would have none",
                key="valid_fraction",
                hint=f"give more documents of type {name}, or another valid_fraction",
            )
