"""The types of configuration values: every number may be written as an expression of numbers."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator, PlainValidator

from evo_core.config.expressions import LARGEST_BITS, Number, evaluate

LARGEST_INT = 2**63 - 1
"""What a tensor's index can be."""
SHOWN = 80
"""Characters of a value that a message shows."""


def to_number(value: Any) -> Number:
    """A number as it is, or a string's value as an expression.

    Raises:
        ValueError: anything else, ``true`` and ``false`` included.
    """
    if isinstance(value, str):
        return evaluate(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {describe(value)}")
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise ValueError(f"must be a number that a float can hold, not {describe(value)}")
    return value


def to_float(value: Any) -> float:
    """A finite number as a float."""
    number = to_number(value)
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, not {describe(number)}")
    return float(number)


def to_int(value: Any) -> int:
    """A whole number as an int; ``"8/2"`` and ``1e3`` are whole."""
    number = to_float(value) if isinstance(value, float) else to_number(value)
    if number != number or number in (math.inf, -math.inf) or number != int(number):
        raise ValueError(f"must be a whole number, not {describe(value)}")
    if not -LARGEST_INT <= number <= LARGEST_INT:
        raise ValueError(f"must be at most 2**63 - 1, not {describe(value)}")
    return int(number)


def to_interval(value: Any) -> int | float:
    """A number of steps between two events: a whole number of at least 1, or ``.inf`` for never."""
    number = to_number(value)
    if number == math.inf:
        return math.inf
    steps = to_int(value)
    if steps < 1:
        raise ValueError(f"must be at least 1 step, or .inf for never, not {steps}")
    return steps


def to_interval_above_one(value: Any) -> int | float:
    """A number of steps of at least 2 between two events; null, true, false and whatever is not above 1 mean never."""
    if value is None or isinstance(value, bool) or to_number(value) <= 1:
        return math.inf
    return to_interval(value)


def to_fraction(value: Any) -> float:
    """A share between 0 and 1; ``false`` is 0 and ``true`` is 1."""
    fraction = float(value) if isinstance(value, bool) else to_float(value)
    if not 0 <= fraction <= 1:
        raise ValueError(f"must be true, false or a share between 0 and 1, not {describe(value)}")
    return fraction


def to_location(value: Any) -> Any:
    """A location, or None; a blank text means None."""
    return None if isinstance(value, str) and not value.strip() else value


def describe(value: Any) -> str:
    """A value as an error message shows it: as YAML writes it, long ones cut."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
    if isinstance(value, dict):
        return "a block of keys"
    if isinstance(value, list | tuple):
        return "[" + _cut(", ".join(map(describe, value[:SHOWN]))) + "]"
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, str):
        start = value[: 2 * SHOWN]
        return _cut(f'"{start}"' if start.isprintable() else json.dumps(start, ensure_ascii=False))
    text = repr(value)
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


Int = Annotated[int, BeforeValidator(to_int)]
PositiveInt = Annotated[int, Ge(1), BeforeValidator(to_int)]
NonNegativeInt = Annotated[int, Ge(0), BeforeValidator(to_int)]
StartBefore = Annotated[int, Ge(-1), BeforeValidator(to_int)]
Float = Annotated[float, BeforeValidator(to_float)]
PositiveFloat = Annotated[float, Gt(0), BeforeValidator(to_float)]
NonNegativeFloat = Annotated[float, Ge(0), BeforeValidator(to_float)]
Probability = Annotated[float, Ge(0), Le(1), BeforeValidator(to_float)]
Interval = Annotated[int | float, PlainValidator(to_interval)]
IntervalAboveOne = Annotated[int | float, PlainValidator(to_interval_above_one)]
LayerFraction = Annotated[float, BeforeValidator(to_fraction)]
OptionalLocation = Annotated[str | None, BeforeValidator(to_location)]
