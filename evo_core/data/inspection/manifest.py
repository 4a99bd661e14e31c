"""Compares the files of a dataset with its manifest ``statistics.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from evo_core.data.dataset.previous_version import STATISTICS
from evo_core.data.dataset.writer import shard_digest
from evo_core.data.inspection.verify import Problem


def compare_with_manifest(folder: Path) -> Iterator[Problem]:
    """Shards that are gone or hold other bytes than when they were written; nothing for a folder without a manifest."""
    manifest = folder / STATISTICS
    if not manifest.is_file():
        return
    try:
        shards = orjson.loads(manifest.read_bytes())["shards"]
        expected = [
            (shard["path"] + ending, shard[digest])
            for shard in shards
            for ending, digest in (("", "digest"), (".meta", "meta_digest"))
        ]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        yield Problem(manifest, None, f"not a manifest of shards ({error})")
        return
    for name, digest in expected:
        path = folder / name
        if not path.is_file():
            yield Problem(path, None, f"is listed in {STATISTICS}, and not there")
        elif shard_digest(path) != digest:
            yield Problem(path, None, f"holds other bytes than {STATISTICS} says (blake3)")
