"""Memory of a long run: at an interval what nobody uses is given back, and how much is in use is said."""

from __future__ import annotations

import gc
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from evo_core.parallel.collectives import gather_numbers
from evo_core.parallel.one_job import ranks_in_words

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.parallel.mesh import Axis
    from evo_core.parallel.process_group import Ranks

log = logging.getLogger(__name__)


@contextmanager
def collected_by_hand() -> Iterator[None]:
    """Python's garbage collector runs in the block where `clean_up` says so, and nowhere else: of many ranks one would
    stop for it at a time, and all would wait."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def clean_up_interval(cfg: TrainConfig) -> int:
    """Steps between two clean-ups; as in InternEvo 0 or less means 50."""
    interval = cfg.data.empty_cache_and_diag_interval
    return interval if interval > 0 else 50


FIRST = 6
"""Steps at the beginning of a run after each of which memory is told: by then every buffer has been made."""


def clean_up(ranks: Ranks, world: Axis) -> None:
    """Give back cached memory and say how much is in use; every rank must call it."""
    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    say_memory(ranks)
    used = gather_numbers(_used(ranks.device), ranks.device, world.group)
    if world.size > 1:
        rank = int(used[:, 0].argmax())
        log.info("memory of all ranks: the most is %.2f GB, on rank %d", used[rank, 0], rank)
    if ranks.rank == 0 and (short := used[:, 1].nonzero().flatten().tolist()):
        log.warning(
            "the allocator of %s had to give back its cache to find memory, which is slow (%d times on rank %d): "
            "use a smaller data.micro_bsz, or more of model.checkpoint",
            ranks_in_words(short),
            used[short[0], 1],
            short[0],
        )


def say_memory(ranks: Ranks) -> None:
    """Say how much this rank has in use."""
    usage = f"peak resident memory {_resident():.2f} GB"
    if ranks.device.type == "cuda":
        usage += (
            f", GPU memory allocated {torch.cuda.memory_allocated() / 2**30:.2f} GB, "
            f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GB, "
            f"reserved {torch.cuda.memory_reserved() / 2**30:.2f} GB"
        )
    log.info("memory of rank %d: %s", ranks.rank, usage)


def _used(device: torch.device) -> tuple[float, float]:
    """The most gigabytes that this rank has had in use; how often its GPU's allocator found none at first since it was
    last asked."""
    if device.type != "cuda":
        return _resident(), 0.0
    retries = torch.cuda.memory_stats().get("num_alloc_retries", 0)
    torch.cuda.reset_accumulated_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**30, float(retries)


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
