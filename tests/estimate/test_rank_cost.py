"""What is imagined of a rank is what real ranks count."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import pytest
import torch.distributed as dist

from evo_core.estimate.costs import RankCost
from evo_core.estimate.rank_cost import quick_cost, rank_cost
from tests.estimate.jobs import counted, job_of, ranks_of
from tests.ranks import run_on_ranks

BFLOAT16 = "bfloat16"

OFTEN = [
    ("msp2-recompute-half", "float32"),
    ("isp2w2-memory-pool", "float32"),
    ("pp2zbv", "float32"),
    ("dp2-fsdp2-recompute-half", BFLOAT16),
    ("dp2-zero2-moe-dropless", "float32"),
    ("dp2-zero2-muon-one-layer-overlap", "float32"),
]
TWO = [
    ("dp2-zero2-overlap-params", BFLOAT16),
    ("pp2x2", "float32"),
    ("pp2zbv-recompute", "float32"),
    ("dp2", "float32"),
    ("dp2-zero2-fp32-norm", BFLOAT16),
    ("dp2-zero2-recompute", BFLOAT16),
    ("mtp2", "float32"),
    ("mtp2-tied", BFLOAT16),
    ("mtp2-moe", "float32"),
    ("msp2", BFLOAT16),
    ("fsp2", "float32"),
    ("isp1w2", "float32"),
    ("isp2w2", BFLOAT16),
    ("isp2w2-weight-overlap-recompute", "float32"),
    ("pp2", BFLOAT16),
    ("pp2-tied", "float32"),
    ("pp2zbh1", "float32"),
    ("pp2zbv", BFLOAT16),
    ("dp2-fsdp2", "float32"),
    ("dp2-fsdp2-fp32-norm", BFLOAT16),
    ("dp2-zero2-moe-dropless", BFLOAT16),
    ("dp2-ep1-moe-dropless", "float32"),
    ("dp2-zero2-muon-fused", BFLOAT16),
    ("dp2-zero2-muon-overlap", "float32"),
    ("isp2w1-zero2-muon-overlap", BFLOAT16),
]
FOUR = [
    ("dp4-zero2", BFLOAT16),
    ("dp4-zero2-muon-overlap", BFLOAT16),
    ("dp4-zero4-muon-one-layer-overlap", BFLOAT16),
    ("isp2w1-dp2-zero4-muon-one-layer-overlap", "float32"),
    ("mtp4-one-kv-head", "float32"),
    ("msp2-dp2-zero2", BFLOAT16),
    ("isp4w2-zero2", BFLOAT16),
    ("isp2w4-memory-pool", "float32"),
    ("pp2-dp2-zero2", BFLOAT16),
    ("pp2x2-msp2", "float32"),
    ("pp2-isp2w2", "float32"),
    ("dp4-fsdp2", BFLOAT16),
    ("dp4-fsdp4", "float32"),
    ("msp2-dp2-fsdp2", BFLOAT16),
    ("dp4-ep2-moe-dropless", "float32"),
    ("pp4", "float32"),
    ("pp4zbh1", BFLOAT16),
]
FEW = [
    ("dp2-zero2-recompute-half", 2, 4),
    ("pp2", 4, 4),
    ("dp2-zero2-overlap", 8, 2),
    ("dp2-zero2-muon-one-layer-overlap", 8, 1),
]
FURTHER = [
    ("dp2-zero2", 4, 6),
    ("msp2-recompute", 4, 4),
    ("isp2w2-memory-pool", 4, 6),
    ("isp2w2-weight-overlap-recompute-half", 4, 8),
    ("dp2-fsdp2", 4, 6),
    ("dp2-fsdp2-recompute-half", 4, 8),
    ("dp4-fsdp2", 16, 6),
    ("pp2x2", 8, 12),
    ("pp2zbh1", 8, 7),
    ("pp2zbv", 8, 14),
    ("pp2zbv-recompute", 8, 14),
    ("pp2-dp2-zero2-recompute", 16, 6),
    ("pp4", 16, 10),
    ("dp2-zero2-moe-dropless", 4, 4),
    ("dp2-zero2-muon", 4, 7),
    ("pp2-dp2-zero2-muon", 16, 6),
    ("dp4-zero4-ep2-moe-muon", 8, 5),
    ("isp2w1-zero2-muon-overlap", 4, 6),
]
MEASURED_ONLY = "all_to_all_rows"
"""How many tokens go to the experts of other ranks is decided by a router."""


def check(rows: list[tuple[str, str]], ranks: int, *, imagined: Collection[int]) -> None:
    """Compare some ranks of some rows of `evo parity`."""
    jobs = [job_of(name, dtype) for name, dtype in rows]
    for (name, _), cfg, real in zip(rows, jobs, counted(jobs, ranks), strict=True):
        for rank in imagined:
            here, there = rank_cost(cfg, ranks, rank), real[rank]
            assert exact(here) == exact(there), f"{name}, rank {rank}"
            off = 0.05 if "moe" in name else 0.0
            assert here.activations == pytest.approx(there.activations, rel=off), f"{name}, rank {rank}"


def exact(cost: RankCost) -> dict[str, Any]:
    """What is known whatever the data are."""
    found = dataclasses.asdict(cost)
    del found["activations"]
    return found | {"sent": {key: size for key, size in cost.sent.items() if key[0] != MEASURED_ONLY}}


def test_imagined_ranks_hold_and_send_what_real_ones_do() -> None:
    check(OFTEN, 2, imagined=[1])


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "ranks"), [(TWO, 2), (FOUR, 4)])
def test_at_every_layout(rows: list[tuple[str, str]], ranks: int) -> None:
    check(rows, ranks, imagined=range(ranks))


def check_few(name: str, micro_batches: int, layers: int, *, imagined: Collection[int]) -> None:
    """Compare what few layers and micro-batches say of a step with the step."""
    blocks = {"data": {"global_batch_tokens": micro_batches * 64}, "model": {"num_layers": layers}}
    cfg, ranks = job_of(name, **blocks), ranks_of(name)
    for rank in imagined:
        assert quick_cost(cfg, ranks, rank) == rank_cost(cfg, ranks, rank)


@pytest.mark.parametrize(("name", "micro_batches", "layers"), FEW)
def test_few_layers_and_micro_batches_say_what_all_of_them_do(name: str, micro_batches: int, layers: int) -> None:
    check_few(name, micro_batches, layers, imagined=[1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "micro_batches", "layers"), FURTHER)
def test_at_every_layout_few_of_them_do(name: str, micro_batches: int, layers: int) -> None:
    check_few(name, micro_batches, layers, imagined=[0, ranks_of(name) - 1])


def test_no_process_group_is_left_behind_and_none_is_taken() -> None:
    cfg = job_of("dp2")
    rank_cost(cfg, 2, 1)
    assert not dist.is_initialized()

    def ask() -> str:
        try:
            rank_cost(cfg, 1, 0)
        except RuntimeError as error:
            return str(error)
        return ""

    (said,) = run_on_ranks(ask, 1)
    assert "in a process that has none" in said


def test_of_a_thousand_ranks_each_is_as_its_place_says() -> None:
    cfg = job_of("pp2-dp2-zero2", data={"global_batch_tokens": 64 * 512})
    first, last = quick_cost(cfg, 1024, 0), quick_cost(cfg, 1024, 1023)
    assert ("reduce_scatter", "zero") in first.sent and ("all_reduce", "replica") in first.sent
    assert first.activations != last.activations  # one stage has the head


def test_what_is_sent_goes_along_axes_that_the_degrees_know() -> None:
    cfg = job_of("pp4", model_type="LLAMA3", model={"tie_word_embeddings": True})
    sent = rank_cost(cfg, 4, 3).sent
    assert {cfg.degrees(4).line(axis).size for _, axis in sent} == {4}  # type: ignore[arg-type]
