"""Data types of which nothing would be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from evo_core.data.inspection.find import ShardFile
from evo_core.data.inspection.verify import Problem
from evo_core.data.shards.format import BinReader
from evo_core.data.shards.targets import NO_TARGETS, has_targets
from evo_core.errors import DataError


def groups_without_targets(path: Path, shards: Sequence[ShardFile]) -> Iterator[Problem]:
    """Groups of shards whose documents are context alone; damaged ones are left to who looks for damage.

    Args:
        path: what the shards were found in.
        shards: in the order of `find_shards`.
    """
    for group, members in groupby(shards, key=lambda shard: shard.group):
        paths = [shard.path for shard in members]
        try:
            has_context = any((BinReader(bin_path).lengths > 1).any() for bin_path in paths)
            if has_context and not has_targets(paths):
                yield Problem(path, None, f"{group}: {NO_TARGETS}")
        except DataError:
            continue
