"""How far the steps of a layout are from those of one process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from evo_core.parity.whole import Step

LOSS, NORM = "loss", "grad_norm"

FLOAT64_BAR = 1e-12
"""Largest deviation in float64: thousands of roundings, and far below any mistake."""

NARROW_FACTOR = 2.0
"""In narrower types: so many times the deviation of one process in that type from float64."""


@dataclass(frozen=True)
class Deviation:
    """Of one tensor or number in one step: ``max |difference| / max |reference|``.

    Where the reference is all zero, 0 if the other is so too, else inf.
    """

    value: float
    name: str
    step: int


@dataclass(frozen=True)
class Deviations:
    """All of a run's, step by step.

    Attributes:
        numbers: of what is logged: loss, norm of the gradients and the rest.
        gradients: of the gradient of each parameter.
    """

    numbers: tuple[Deviation, ...]
    gradients: tuple[Deviation, ...]

    def worst_of(self, name: str) -> Deviation:
        """The largest of a logged number."""
        return _worst([each for each in self.numbers if each.name == name])

    @property
    def worst_gradient(self) -> Deviation:
        """The largest of a gradient."""
        return _worst(self.gradients)

    @property
    def worst(self) -> Deviation:
        """The largest of all."""
        return _worst([*self.numbers, *self.gradients])


def deviations(reference: Sequence[Step], steps: Sequence[Step], *, exact: bool) -> Deviations:
    """How far `steps` are from `reference`, which have the same parameters.

    Args:
        exact: whether both are in float64: then all that is logged is looked at. In a narrow type another token may be
            the likeliest, and ``acc`` be another.
    """
    numbers, gradients = [], []
    for step, (one, other) in enumerate(zip(reference, steps, strict=True)):
        for name, value in one.numbers.items():
            if exact or name in (LOSS, NORM):
                numbers.append(Deviation(_of_numbers(value, other.numbers.get(name, math.nan)), name, step))
        gradients += [Deviation(d, name, step) for name, d in _of_tensors(one, other)]
    return Deviations(tuple(numbers), tuple(gradients))


def _of_tensors(one: Step, other: Step) -> Iterator[tuple[str, float]]:
    for name in {**one.gradients, **other.gradients}:
        if name not in one.gradients or name not in other.gradients:
            yield name, math.inf
        else:
            yield name, deviation(one.gradients[name], other.gradients[name])


def deviation(reference: Tensor, tensor: Tensor) -> float:
    """``max |difference| / max |reference|``; inf for other shapes, for nan, and for what should be all zero."""
    if reference.shape != tensor.shape:
        return math.inf
    if not reference.numel():
        return 0.0
    largest = float(reference.double().abs().max())
    return _ratio(float((tensor.double() - reference.double()).abs().max()), largest)


def _of_numbers(reference: float, value: float) -> float:
    return _ratio(abs(value - reference), abs(reference))


def _ratio(difference: float, largest: float) -> float:
    if difference == 0:
        return 0.0
    if largest == 0 or math.isnan(difference) or math.isnan(largest):
        return math.inf
    return difference / largest


def _worst(found: Sequence[Deviation]) -> Deviation:
    return max(found, key=lambda each: each.value)
