"""A job that adds up its ranks' numbers over the whole process group."""

from __future__ import annotations

import torch
import torch.distributed as dist

from evo_core.parallel.process_group import ranks
from tests.tasks.launch.stand_in import say

if __name__ == "__main__":
    with ranks() as r:
        total = torch.tensor([float(r.rank + 1)])
        dist.all_reduce(total)
        say(f"launcher {r.launcher} sum {total.item()} of {r.world_size}")
