"""What a miss may mean: where it is first seen, and in how many tensors, says which part of the work is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evo_core.parity.deviation import LOSS, NARROW_FACTOR, NORM, Deviation, Deviations
from evo_core.parity.whole import Step

_FEW = 0.25
"""The share of the tensors up to which each is wrong by itself, and not by what flows back into it."""


def diagnosis(reference: Sequence[Step], steps: Sequence[Step], found: Deviations, bar: float) -> str:
    """One sentence of what deviates first, and one of what that points to.

    Args:
        reference: the steps of one process.
        steps: those of the layout.
        found: its deviations, the largest of which is above `bar`.
    """
    step = min(each.step for each in (*found.numbers, *found.gradients) if _misses(each, bar))
    numbers = {each.name: each for each in found.numbers if each.step == step and _misses(each, bar)}
    gradients = [each for each in found.gradients if each.step == step]
    wrong = [each for each in gradients if _misses(each, bar)]
    worst = max(wrong or list(numbers.values()), key=lambda each: each.value)
    scope = f", and {len(wrong) - 1} more of {len(gradients)} gradients" if len(wrong) > 1 else ""
    return (
        f"step {step}: {worst.name} deviates by {worst.value:.1e}{scope}: {_meaning(reference, steps, numbers, wrong)}"
    )


def rounding(found: Deviations, bar: float) -> str:
    """The same in a narrow type, where deviations do not tell a mistake from rounding."""
    worst = found.worst
    return (
        f"step {worst.step}: {worst.name} deviates by {worst.value:.1e}, one process by {bar / NARROW_FACTOR:.1e}: "
        "where float64 finds the layout equal, it rounds more; where it does not, that tells what is wrong"
    )


def _meaning(
    reference: Sequence[Step], steps: Sequence[Step], numbers: dict[str, Deviation], wrong: Sequence[Deviation]
) -> str:
    step = wrong[0].step if wrong else next(iter(numbers.values())).step
    if step > 0:
        return (
            "the steps before it agree, so the update differs: clipping by another norm, or a share of the optimizer's "
            "state that is not what a rank owns"
        )
    if LOSS in numbers:
        return "already the first loss differs: first weights, the batch, or the forward pass"
    if not wrong:
        return _of_numbers(reference[step], steps[step], numbers)
    factors = {name: _factor(reference[step], steps[step], name) for name in (each.name for each in wrong)}
    if None not in factors.values() and len({round(factor, 6) for factor in factors.values() if factor}) == 1:
        factor = next(iter(factors.values()))
        return (
            f"it is {factor:.6g} times what it should be: a number of ranks, or a scale of the configuration, by which "
            "gradients are multiplied or divided once too often or too seldom"
        )
    total = len(reference[step].gradients)
    if len(wrong) <= max(1, _FEW * total):
        return (
            "the others agree, so what flows back is right and the sum of what it leaves here is not: a part of the "
            "gradient on each rank that is not summed, or a piece in the wrong place"
        )
    return f"the loss agrees, and the backward pass does not from {wrong[0].name} on down"


def _of_numbers(one: Step, other: Step, numbers: dict[str, Deviation]) -> str:
    if NORM in numbers:
        ratio = other.numbers[NORM] / one.numbers[NORM]
        how = "counted more than once" if ratio > 1 else "left out"
        return f"the gradients agree and their norm does not ({ratio:.6g} times): a parameter on several ranks is {how}"
    return "loss and gradients agree: what is counted for the log is not"


def _factor(one: Step, other: Step, name: str) -> float | None:
    """By how much a gradient is too large, where it is right but for a factor."""
    reference, tensor = one.gradients.get(name), other.gradients.get(name)
    if reference is None or tensor is None or reference.shape != tensor.shape:
        return None
    return _multiple(reference.double(), tensor.double())


def _multiple(reference: Tensor, tensor: Tensor) -> float | None:
    square = float((reference * reference).sum())
    if square == 0:
        return None
    factor = float((reference * tensor).sum()) / square
    rest = float((tensor - factor * reference).abs().max()) / float(reference.abs().max())
    return factor if rest < 1e-6 and _counts_ranks(factor) else None


def _counts_ranks(factor: float) -> bool:
    """Whether it is 2, 4, … or one over them: any factor fits a bias of two numbers that add up to zero."""
    turns = max(factor, 1 / factor) if factor > 0 else 0.0
    return round(turns) > 1 and abs(turns - round(turns)) < 1e-6


def _misses(each: Deviation, bar: float) -> bool:
    return not each.value <= bar
