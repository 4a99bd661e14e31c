"""The arithmetic of a comparison: whole tensors out of shares, deviations, and what a miss is said to mean."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from evo_core.parity.deviation import deviation, deviations
from evo_core.parity.diagnosis import diagnosis
from evo_core.parity.matrix import compared
from evo_core.parity.measure import Seen, Share
from evo_core.parity.whole import NotWhole, Step, joined, whole
from evo_core.placement import Placement

WHOLE = np.arange(12.0).reshape(4, 3)


def half(index: int, values: np.ndarray = WHOLE) -> Share:
    return values[2 * index : 2 * index + 2].copy(), Placement.cut((4, 3), 0, index, 2, [index])


def copy(values: np.ndarray = WHOLE, ranks: tuple[int, ...] = (0, 1)) -> Share:
    return values.copy(), Placement.whole((4, 3), ranks)


def test_a_whole_out_of_halves_and_of_copies() -> None:
    for shares in ({0: half(0), 1: half(1)}, {0: copy(), 1: copy()}, {1: copy(ranks=(1,))}):
        assert torch.equal(whole(shares), torch.from_numpy(WHOLE))


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({0: half(0)}, "6 of 12 elements are on no rank"),
        ({0: copy(), 1: copy(np.nextafter(WHOLE, 99.0))}, "other bits on rank 1"),
        ({0: copy(ranks=(0,)), 1: copy(ranks=(1,))}, r"is on ranks \[0, 1\], and its record says \[0\]"),
        ({0: copy(ranks=(0, 1))}, r"is on ranks \[0\], and its record says \[0, 1\]"),
    ],
    ids=["hole", "copies", "more holders", "fewer holders"],
)
def test_shares_that_are_no_whole_are_refused(shares: dict[int, Share], said: str) -> None:
    with pytest.raises(NotWhole, match=said):
        whole(shares)


def test_ranks_must_log_the_same_numbers() -> None:
    with pytest.raises(NotWhole, match=r"step 0: loss is 1.0 on rank 0 and 1.5 on rank 1"):
        joined([[Seen({"loss": 1.0}, {})], [Seen({"loss": 1.5}, {})]])


def test_a_deviation_is_relative_to_the_largest_element() -> None:
    reference = torch.tensor([1.0, -4.0])
    assert deviation(reference, reference.clone()) == 0
    assert deviation(reference, torch.tensor([1.5, -4.0])) == 0.125
    assert deviation(reference, torch.tensor([1.0, math.nan])) == math.inf
    assert deviation(reference, torch.ones(3)) == math.inf


def test_what_is_all_zero_must_be_exactly_zero() -> None:
    assert deviation(torch.zeros(2), torch.zeros(2)) == 0
    assert deviation(torch.zeros(2), torch.tensor([0.0, 1e-30])) == math.inf


def test_a_gradient_that_is_missing_or_new_is_infinitely_off() -> None:
    one, other = step({"a": 1.0}), step({"b": 1.0})
    assert {each.name: each.value for each in deviations([one], [other], exact=True).gradients} == {
        "a": math.inf,
        "b": math.inf,
    }


NAMES = tuple("abcdefgh")


def step(gradients: Mapping[str, float], loss: float = 2.0, norm: float = 3.0, **more: float) -> Step:
    tensors = {name: value * torch.tensor([1.0, 2.0], dtype=torch.float64) for name, value in gradients.items()}
    return Step({"loss": loss, "grad_norm": norm, **more}, tensors)


GOOD = step(dict.fromkeys(NAMES, 1.0), acc=0.5)


def off(*names: str, by: tuple[float, float]) -> Step:
    gradients = {n: t + torch.tensor(by, dtype=torch.float64) * (n in names) for n, t in GOOD.gradients.items()}
    return Step(GOOD.numbers, gradients)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            [step(dict.fromkeys(NAMES, 1.0), loss=2.5, acc=0.5)],
            "step 0: loss .* first weights, the batch, or",
        ),
        ([step(dict.fromkeys(NAMES, 1.0), norm=6.0, acc=0.5)], r"\(2 times\): .* counted more than once"),
        ([step(dict.fromkeys(NAMES, 1.0), norm=1.5, acc=0.5)], r"\(0.5 times\): .* left out"),
        ([step(dict.fromkeys(NAMES, 1.0), acc=0.25)], "acc .*counted for the log"),
        ([step(dict.fromkeys(NAMES, 0.5), acc=0.5)], "7 more of 8 gradients: it is 0.5 times what it should be"),
        ([off("c", by=(0.5, 0.0))], "step 0: c .* the sum of what it leaves here is not"),
        ([off(*"bcde", by=(0.5, 0.0))], "the loss agrees, and the backward pass does not from b on down"),
        ([GOOD, off("c", by=(0.5, 0.0))], "step 1: c .* the update differs"),
    ],
)
def test_a_miss_says_where_and_what_it_may_mean(steps: list[Step], said: str) -> None:
    reference = [GOOD] * len(steps)
    found = deviations(reference, steps, exact=True)
    assert re.search(said, diagnosis(reference, steps, found, 1e-12))


def test_what_two_ranks_have_differently_is_a_miss_without_deviations() -> None:
    seen = [[Seen(GOOD.numbers, {"a": copy(values)})] for values in (WHOLE, WHOLE + 1)]
    found, why = compared([GOOD], seen, 1e-12)
    assert found is None
    assert why is not None and why.startswith("step 0: a: ")
