"""Learning rate and beta2 over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from evo_core.optim.schedules import Beta2Schedule, Kind, LearningRate


def test_the_tutorials_log_line() -> None:
    """Its line of step 0 shows the rate after one update: 1e-4 * 2 / 500, and so on."""
    lr = LearningRate(lr=1e-4, total_steps=50000, warmup_ratio=0.01, eta_min=1e-5)
    assert [lr(t) for t in (1, 2, 3)] == pytest.approx([4e-7, 6e-7, 8e-7], rel=1e-12)


def test_shape() -> None:
    lr = LearningRate(lr=1.0, total_steps=110, init_steps=5, warmup_ratio=0.1, eta_min=0.1)
    assert [lr(t) for t in range(5)] == [0.0] * 5
    assert lr(5) == pytest.approx(1 / 11)
    assert lr(15) == pytest.approx(1.0)  # the last of the warm-up
    assert lr(16) == pytest.approx(1.0)  # the first of the cosine
    half = 16 + (110 - 16) / 2
    assert lr(int(half)) == pytest.approx((1.0 + 0.1) / 2)
    assert lr(110) == pytest.approx(0.1)
    assert lr(1000) == pytest.approx(0.1)
    rates = [lr(t) for t in range(16, 111)]
    assert rates == sorted(rates, reverse=True)


def test_no_warm_up_and_one_step() -> None:
    assert LearningRate(lr=1.0, total_steps=10, eta_min=0.0)(0) == 1.0
    assert LearningRate(lr=1.0, total_steps=1, warmup_ratio=1.0, eta_min=0.5)(0) == 1.0


def test_the_cosine_is_torchs() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2)
    ours = LearningRate(lr=1.0, total_steps=50, eta_min=0.2)
    for t in range(50):
        assert ours(t) == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    ("kind", "decay_type", "of_done"),
    [
        ("linear", "linear", lambda done: 1 - done),
        ("constant", "linear", lambda done: 1.0),
        ("wsd", "linear", lambda done: min(1.0, (1 - done) * 80 / 20)),
        ("wsd", "cosine", lambda done: (1 + math.cos(math.pi * max(0.0, (done * 80 - 60) / 20))) / 2),
        ("wsd", "sqrt", lambda done: 1 - math.sqrt(max(0.0, (done * 80 - 60) / 20))),
    ],
)
def test_kinds(kind: Kind, decay_type: str, of_done: Callable[[float], float]) -> None:
    """Of 100 updates 15 are at zero, 5 warm up, and of wsd the last 20 are the decay."""
    rate = LearningRate(1.0, 100, 15, 0.05, 0.2, kind=kind, decay_ratio=0.2, decay_type=decay_type)  # type: ignore[arg-type]
    assert [rate(t) for t in range(20)] == pytest.approx([0.0] * 15 + [0.2, 0.4, 0.6, 0.8, 1.0])
    assert [rate(t) for t in range(20, 101)] == pytest.approx([0.2 + 0.8 * of_done(t / 80) for t in range(81)])
    assert rate(1000) == rate(100)


def test_the_linear_one_is_torchs() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=50)
    ours = LearningRate(lr=1.0, total_steps=50, eta_min=0.2, kind="linear")
    for t in range(60):
        assert ours(t) == pytest.approx(reference.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd-linear", "wsd-cosine", "wsd-1-sqrt"])
def test_the_ways_down_are_those_of_transformers(kind: str) -> None:
    """Its warm-ups begin at a rate of 0, where ours begins at a step's worth: behind one, the rates are the same."""
    import torch
    import transformers

    total, warmup, decay, lr = 60, 6, 20, 0.5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    shape, _, way = kind.partition("-")
    rate: dict[str, Any] = {"kind": shape}
    if shape == "wsd":
        reference = transformers.get_wsd_schedule(
            optimizer,
            num_warmup_steps=warmup,
            num_stable_steps=total - warmup - decay,
            num_decay_steps=decay,
            decay_type=way,
            min_lr_ratio=0.1,
        )
        rate |= {"decay_ratio": decay / total, "decay_type": "sqrt" if way == "1-sqrt" else way, "eta_min": 0.05}
    else:
        reference = getattr(transformers, f"get_{kind}_schedule_with_warmup")(optimizer, warmup, total)
    ours = LearningRate(lr=lr, total_steps=total, warmup_ratio=warmup / total, **rate)
    for t in range(total + 1):
        if t >= warmup:
            assert ours(t) == pytest.approx(reference.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        reference.step()


def test_beta2() -> None:
    assert [Beta2Schedule(0.95)(t) for t in (0, 10, 1000)] == [0.95] * 3
    rising = Beta2Schedule(0.5, c=0.8)
    assert [rising(t) for t in (0, 1, 2)] == [0.5, 0.5, 0.5]
    assert rising(100) == pytest.approx(1 - math.pow(100, -0.8))


class _OriginalBeta2:
    """InternEvo's scheduler, from its description: Adam begins with its own beta2, and the count goes up first."""

    def __init__(self, init_beta2: float, c: float, cur_iter: int) -> None:
        self.k = 0 if cur_iter == -1 else cur_iter
        self.init, self.c, self.of_adam = init_beta2, c, init_beta2

    def step(self) -> None:
        self.k += 1
        self.of_adam = self.init if self.c <= 0 else max(self.init, 1 - 1 / self.k**self.c)


@pytest.mark.parametrize("cur_iter", [-1, 0, 1, 5, 100, 10**6])
@pytest.mark.parametrize("c", [0.0, -1.0, 0.8, 1.0])
def test_beta2_counts_on_as_in_the_original(cur_iter: int, c: float) -> None:
    original, ours = _OriginalBeta2(0.5, c, cur_iter), Beta2Schedule(0.5, c=c, cur_iter=cur_iter)
    for updates in range(50):
        assert ours(updates) == pytest.approx(original.of_adam, rel=1e-14)
        original.step()
