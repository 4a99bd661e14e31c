"""The loss scale, as a table of what happens and what it is then."""

from __future__ import annotations

import pytest
import torch

from evo_core.optim.loss_scaler import LossScaler, needs_scaling

G, B = False, True  # a good update, a bad one


@pytest.mark.parametrize(
    ("settings", "history", "scale"),
    [
        ({}, [], 1024),
        ({"hysteresis": 2}, [B], 1024),  # the first overflow is forgiven
        ({"hysteresis": 2}, [B, B], 512),
        ({"hysteresis": 2}, [B, G, B], 512),  # good updates do not clear the count
        ({"hysteresis": 2}, [B, B, B], 256),  # past it every further one counts
        ({"hysteresis": 2, "growth_interval": 2}, [B, B, G, G], 1024),
        ({"hysteresis": 2, "growth_interval": 2}, [B, B, G, G, B], 1024),  # a growth clears the count
        ({"hysteresis": 2, "growth_interval": 2}, [B, B, G, B, G], 256),  # an overflow restarts the interval
        ({"hysteresis": 1}, [B], 512),
        ({"hysteresis": 0}, [B], 512),
        ({"hysteresis": 1, "min_scale": 600}, [B, B], 600),
        ({"hysteresis": 1}, [B] * 2000, 2.0**-24),  # no loss has a gradient of 16 bits below, and 0 divides nothing
        ({"growth_interval": 1}, [G, G, G], 8192),
        ({"growth_interval": 1, "max_scale": 2048}, [G, G, G], 2048),
        ({"growth_interval": 1, "growth_factor": 4}, [G], 4096),
        ({"hysteresis": 1, "backoff_factor": 0.25}, [B], 256),
        ({"enabled": False, "hysteresis": 1}, [B, B], 1),
        ({"enabled": False, "growth_interval": 1}, [G], 1),
    ],
)
def test_table(settings: dict, history: list[bool], scale: float) -> None:
    scaler = LossScaler(scale=1024, **settings)
    for overflow in history:
        scaler.update(overflow=overflow)
    assert scaler.scale == scale


def test_state_goes_on() -> None:
    first = LossScaler(scale=1024, hysteresis=2, growth_interval=3)
    for overflow in (True, False, False):
        first.update(overflow=overflow)
    second = LossScaler(scale=2.0**16, hysteresis=2, growth_interval=3)
    second.load_state(first.state())
    for scaler in (first, second):
        scaler.update(overflow=False)
    assert second == first
    assert second.scale == 2048


@pytest.mark.parametrize("history", [[B, B], [B, G], [B, B, B, G, G], [G, G, B]])
def test_a_scale_of_one_and_its_counts_go_on_too(history: list[bool]) -> None:
    """1 is a scale like any other: the counts beside it are the run's, at every moment of it."""
    first = LossScaler(scale=2.0, min_scale=0.5, hysteresis=2, growth_interval=2)
    seen = set()
    for overflow in [*history, B, B, G, G, B, B]:
        first.update(overflow=overflow)
        second = LossScaler(scale=2.0**16, min_scale=0.5, hysteresis=2, growth_interval=2)
        second.load_state(first.state())
        assert second == first
        seen.add(first.scale)
    assert 1.0 in seen


def test_a_shorter_interval_after_a_resume_still_grows() -> None:
    first = LossScaler(scale=4.0, growth_interval=100)
    for _ in range(50):
        first.update(overflow=False)
    second = LossScaler(growth_interval=10)
    second.load_state(first.state())
    second.update(overflow=False)
    assert (second.scale, second.good_updates) == (8.0, 0)


def test_a_run_without_scaling_says_nothing_to_one_with() -> None:
    scaler = LossScaler(scale=1024)
    scaler.load_state(LossScaler(enabled=False).state())
    assert scaler.scale == 1024
    off = LossScaler(enabled=False)
    off.load_state(LossScaler(scale=1024).state())
    assert off.scale == 1


def test_which_types_need_it() -> None:
    assert [needs_scaling(t) for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)] == [
        True,
        True,
        False,
        False,
    ]
