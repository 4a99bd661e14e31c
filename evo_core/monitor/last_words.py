"""What the ranks of a run that hangs leave in its folder: ``stuck-<attempt>/``, two files a rank."""

from __future__ import annotations

import json
from pathlib import Path

from evo_core.monitor.stacks import open_collectives, stacks
from evo_core.storage.files import write_file


def folder_of(run: Path, attempt: str) -> Path:
    """Where the ranks of an attempt write."""
    return run / f"stuck-{attempt}"


def write_last_words(folder: Path, rank: int, what: str) -> None:
    """Write ``rank-00000.txt``, the stacks of this rank's threads, and ``rank-00000.collectives.json``.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        collectives = open_collectives()
    except Exception as error:  # a rank without stacks would be taken for the one that hangs
        collectives = [{"error": f"{type(error).__name__}: {error}"}]
    if collectives is not None:
        write_file(folder / _name(rank, "collectives.json"), json.dumps(collectives, indent=1), durable=False)
    # last: see silent_ranks
    write_file(folder / _name(rank, "txt"), f"rank {rank}: {what}\n\n{stacks()}", durable=False)


def silent_ranks(folder: Path, world_size: int) -> list[int]:
    """The ranks that have written nothing, as far as this machine sees the folder."""
    try:
        there = {path.name for path in folder.iterdir()}  # one question, however many ranks there are
    except FileNotFoundError:
        there = set()
    return [rank for rank in range(world_size) if _name(rank, "txt") not in there]


def _name(rank: int, ending: str) -> str:
    return f"rank-{rank:05d}.{ending}"
