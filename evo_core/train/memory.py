"""Memory of a long run: at an interval what nobody uses is given back, and how much is in use is said."""

from __future__ import annotations

import gc
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
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


def clean_up(ranks: Ranks) -> None:
    """Give back cached memory and say how much is in use."""
    gc.collect()
    usage = f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
        usage += (
            f", GPU memory allocated {torch.cuda.memory_allocated() / 2**30:.2f} GB, "
            f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GB, "
            f"reserved {torch.cuda.memory_reserved() / 2**30:.2f} GB"
        )
    log.info("memory of rank %d: %s", ranks.rank, usage)
