"""docs/training.md states what a rank holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evo_core.config import load_config
from evo_core.model.build import build_model
from evo_core.optim.bucket import make_buckets
from evo_core.optim.groups import data_parallel
from tests.optim.held import KINDS, PAGE, counted, documented
from tests.optim.optimizers import zero1_adamw
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

WIDTH, GATHERED = 64, 1024
ELEMENTS = 2 * (WIDTH * WIDTH + WIDTH)


def held(zero: int, dtype: torch.dtype, overlap: bool) -> dict[str, int]:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).to(dtype)
    settings: dict[str, Any] = {"overlap": overlap, "overlap_params": overlap, "gather_size": GATHERED}
    optimizer = zero1_adamw(net, mesh_of(zero), bucket_size=WIDTH * WIDTH, **settings)
    for _ in range(2):
        optimizer.begin()
        optimizer.backward(net(torch.ones(2, WIDTH, dtype=dtype)).float().square().mean(), last=True)
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        assert optimizer.step(0.1, 0.95)
        optimizer.settle()
    assert all(param.grad is None for param in net.parameters())
    return counted(net, optimizer)


@pytest.mark.parametrize("zero", [1, 2, 4])
def test_what_is_held_is_what_the_page_states(zero: int) -> None:
    ways = [(dtype, overlap) for dtype in (torch.float32, torch.bfloat16, torch.float16) for overlap in (False, True)]
    for ranks in run_on_ranks(lambda: [held(zero, *way) for way in ways], zero):
        for found, (dtype, _) in zip(ranks, ways, strict=True):
            assert found == documented(ELEMENTS, zero, dtype, GATHERED)


def test_states_that_some_ranks_share() -> None:
    for found in run_on_ranks(held, 4, 2, torch.bfloat16, True):
        assert found == documented(ELEMENTS, 2, torch.bfloat16, GATHERED)


def sizes_of_buckets(parameters: dict[str, nn.Parameter], size: int) -> list[int]:
    group = data_parallel(parameters.items(), mesh_of(1))
    return [sum(slot.param.numel() for slot in bucket.slots) for bucket in make_buckets(group, size, torch.float32)]


def test_the_example_of_the_page() -> None:
    job = load_config(Path(__file__).parents[2] / "configs" / "train" / "7B_sft.py", [])
    parameters = dict(build_model(job.model, device="meta").named_parameters())
    elements = sum(param.numel() for param in parameters.values())
    page, settings = PAGE.read_text(), job.hybrid_zero_optimizer
    assert f"P = {elements:_}".replace("_", " ") in page
    buckets = run_on_ranks(lambda: sizes_of_buckets(parameters, settings.reduce_bucket_size), 1)[0]
    assert sum(buckets) == elements
    gathered = min(settings.all_gather_size, max(buckets))
    rows = re.findall(r"^\| (\d) \|((?: [\d.]+ \|){5})$", page, re.MULTILINE)
    assert [zero for zero, _ in rows] == ["8", "1"]
    for zero, cells in rows:
        stated = documented(elements, int(zero), torch.bfloat16, gathered)
        sizes = [stated[kind] / 1e9 for kind in KINDS]
        assert cells.split(" |")[:-1] == [f" {size:.1f}" for size in (*sizes, sum(sizes))]
