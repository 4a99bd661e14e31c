"""The model of time: by hand where it can be, and which way each setting moves it."""

from __future__ import annotations

from typing import Any

import pytest

from evo_core.config import TrainConfig
from evo_core.config.resolve import merge
from evo_core.estimate.assumptions import Assumptions
from evo_core.estimate.chips import CHIPS, GB, chip
from evo_core.estimate.step_time import Held, StepTime, step_time
from evo_core.parallel.degrees import Line
from evo_core.train.flops import model_flops
from tests.estimate.files import SMALL

A100 = Assumptions(chip("a100"), 8, 200 * GB)
NOTHING = Held(0, 0, 0)


def time_of(
    gpus: int, sent: dict[tuple[str, str], int] | None = None, assumed: Assumptions = A100, **blocks: Any
) -> StepTime:
    cfg = TrainConfig.model_validate(merge(SMALL, blocks))
    return step_time(cfg, cfg.degrees(gpus), sent or {}, NOTHING, assumed)


def test_what_is_sent_nowhere_takes_the_products_alone() -> None:
    time = time_of(2)
    cfg = TrainConfig.model_validate(SMALL)
    flops = model_flops(cfg.model).of(64 * 1024, 64 * 1024 * 513 / 2)
    assert time.seconds == time.computing == pytest.approx(flops / 2 / (312e12 * 0.6))
    assert time.mfu == pytest.approx(0.6)
    assert time.tgs == pytest.approx(64 * 1024 / 2 / time.seconds)


def test_the_speed_of_an_axis_is_that_of_its_slowest_link() -> None:
    assert A100.speed(Line(8, 1)) == pytest.approx(240 * GB)  # inside a machine
    assert A100.speed(Line(16, 1)) == pytest.approx(160 * GB)  # one ring has the machine's network for itself
    assert A100.speed(Line(4, 8)) == pytest.approx(20 * GB)  # eight rings share it
    assert A100.speed(Line(8, 4)) == pytest.approx(40 * GB)  # four rings of two ranks each
    assert not A100.across(Line(2, 4)) and A100.across(Line(2, 8))


def test_a_ring_of_many_takes_longer_for_a_short_message_than_a_tree() -> None:
    ring, tree = (A100.delay(Line(1024, 1), name) for name in ("all_gather", "all_reduce"))
    assert ring == pytest.approx(128 * 14e-6 + 895 * 3.4e-6)
    assert tree == pytest.approx(7 * 3.4e-6 + 2 * 7 * 14e-6)
    assert A100.delay(Line(8, 1), "all_gather") == pytest.approx(7 * 3.4e-6)


def test_gradients_hide_behind_the_last_backward_pass_alone() -> None:
    sent = {("all_reduce", "replica"): 40 * 10**6}
    plain = time_of(8, sent)
    overlap = time_of(8, sent, hybrid_zero_optimizer={"overlap_sync_grad": True})
    assert plain.waiting["gradients"] == pytest.approx(40e6 / 240e9, rel=0.1)
    assert overlap.seconds < plain.seconds
    much = {("all_reduce", "replica"): 400 * 10**9}
    last = time_of(8, hybrid_zero_optimizer={"overlap_sync_grad": True}).computing / 8 * 2 / 3
    waited = time_of(8, much, hybrid_zero_optimizer={"overlap_sync_grad": True}).waiting["gradients"]
    assert waited == pytest.approx(time_of(8, much).waiting["gradients"] - last)


def test_whole_matrices_hide_less() -> None:
    """A message of as many as there are ranks goes when their last layer is behind, one that is left over last."""

    def hidden(collective: str, name: str, zero1: int) -> float:
        alone, behind = (
            time_of(
                8,
                {(collective, "zero"): 10**8},
                optimizer={"name": name},
                parallel={"zero1": {"size": zero1}},
                hybrid_zero_optimizer={"overlap_sync_grad": overlap},
            ).waiting["gradients"]
            for overlap in (False, True)
        )
        return 1 - behind / alone

    assert hidden("reduce", "muon", 2) == 0
    of_rows, of_two, of_eight = (hidden("reduce_scatter", *way) for way in (("adamw", 2), ("muon", 2), ("muon", 8)))
    assert of_rows > of_two > of_eight == 0  # all that there are of a shape are one message


def test_a_network_is_named_and_a_link_inside_is_not() -> None:
    sent = {("all_reduce", "replica"): 10**9, ("all_gather", "zero"): 10**9}
    time = time_of(64, sent, parallel={"zero1": {"size": 8}})
    assert time.network == {"gradients"}
    assert set(time.waiting) == {"gradients", "updated parameters"}


def test_what_is_sent_all_the_time_leaves_less_to_hide_behind() -> None:
    blocks = {
        "parallel": {
            "tensor": {"size": 1, "mode": "isp"},
            "weight": {"size": 2, "overlap": True},
            "zero1": {"size": 1},
        },
        "hybrid_zero_optimizer": {"overlap_sync_grad": True},
    }
    gradients = {("all_reduce", "weight_replica"): 10**9}
    computing = time_of(8, **blocks).computing
    fetched = {("all_gather", "weight"): int(computing * 240e9)}
    alone = time_of(8, gradients, **blocks).waiting["gradients"]
    assert time_of(8, {**gradients, **fetched}, **blocks).waiting["gradients"] > alone


def test_recomputing_and_stages_take_longer_and_a_faster_chip_does_not() -> None:
    plain = time_of(4)
    assert time_of(4, model={"checkpoint": True}).computing > plain.computing * 1.2
    staged = time_of(4, parallel={"pipeline": {"size": 4}, "zero1": {"size": 1}})
    assert staged.bubble == pytest.approx(staged.computing * 3 / 64)
    assert time_of(4, assumed=Assumptions(chip("h100"), 8, 400 * GB)).seconds < plain.seconds / 2


def test_passes_over_memory_grow_with_the_micro_batches() -> None:
    held = Held(2 * 10**9, 4 * 10**9, 12 * 10**9)
    assert held.moved(4) == 4 * (2 + 8) * 10**9 + (4 + 24 + 2) * 10**9


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_has_a_peak_for_what_is_trained_in(name: str) -> None:
    peaks = [chip(name).teraflops(dtype) for dtype in ("bfloat16", "float16", "tf32", "float32")]
    assert peaks[0] == peaks[1] > peaks[2] > peaks[3] > 0
