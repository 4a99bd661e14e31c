"""What a save in the background takes of the host's memory: the copies, once, and next to nothing beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint import TrainState
from evo_core.checkpoint.background import BackgroundSaves
from evo_core.checkpoint.saving import write
from evo_core.config import TrainConfig
from evo_core.placement import Placed, Placement
from evo_core.storage.location import Location
from evo_core.storage.s3.client import THREADS
from evo_core.storage.s3.transfer import PIECE
from tests.memory import growing
from tests.ranks import run_on_ranks
from tests.s3_server import S3Server

MB = 1 << 20

JOB = {
    "model_type": "LLAMA2",
    "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 32},
}


def tensors(size: int) -> dict[str, Placed]:
    """Views of one flat tensor, as an optimizer's states are; 16 MB each, and whole on every rank."""
    views = torch.ones(size // 4).split(16 * MB // 4)
    ranks = range(dist.get_world_size())
    return {str(number): Placed(view, Placement.whole(view.shape, ranks)) for number, view in enumerate(views)}


def grown(root: Location, size: int, saves: int) -> list[tuple[float, float]]:
    """MB by which each save makes this rank grow, at most and for good."""
    cfg, background, found = TrainConfig.model_validate(JOB), BackgroundSaves(), []

    def save(values: dict[str, Placed], step: int) -> None:
        state = TrainState(step=step)
        background.start(
            {"model": {}, "optimizer": values}, lambda staged, group: write(root, cfg, staged, state, group=group)
        )
        background.wait()

    save(tensors(MB), 1)  # imports, connections, threads
    values = tensors(size)
    for number in range(saves):
        with growing() as each:
            save(values, 2 + number)
        found.append((each.peak / MB, each.left / MB))
    return found


def test_copies_and_nothing_more(tmp_path: Path) -> None:
    # Above 32 MB, up to which glibc may hand out memory that was freed before, of which nobody would see a growth.
    for first, second, third in run_on_ranks(grown, 2, tmp_path, 96 * MB, 3):
        own = 48  # each element once over all ranks
        assert own - 1 < first[1] < own + 4 and first[0] < own + 4
        assert max(second[0], third[0]) < 4, "the copies of before are used again"


@pytest.mark.s3
def test_in_a_store_the_pieces_on_their_way_and_nothing_more(s3: S3Server) -> None:
    size = 192 * MB
    (((peak, _),),) = run_on_ranks(grown, 1, f"s3://{s3.new_bucket()}/run", size, 1)
    assert peak < (size + (THREADS + 1) * PIECE) / MB + 8
