"""Tables of values: what a ``foreach:`` says, and how two of them go together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from evo_core.config.canonical_json import canonical_json
from tasks.params.names import variable_problem

MOST_STEPS = 1000
"""Steps that one foreach may come to."""

FORM = "for example foreach: {lr: [1e-3, 3e-4]}, or a list of maps for pairs: [{lr: 1e-3, seed: 1}, …]"

Row = Mapping[str, Any]
"""A value for every variable. All rows of a table have the same variables."""


class NoTable(Exception):
    """What a foreach says makes no table. `inside` is the key below it, or empty."""

    def __init__(self, message: str, inside: str = "", hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.inside, self.hint = message, inside, hint


def table(given: Any) -> list[Row]:
    """The rows of a foreach: the product of a map's lists, or the maps of a list.

    Raises:
        NoTable: it is neither, has no values, too many, or one twice.
    """
    if isinstance(given, dict) and given:
        rows = _product(given)
    elif isinstance(given, list) and given and all(isinstance(row, dict) and row for row in given):
        rows = _listed(given)
    else:
        raise NoTable("is no map of lists and no list of maps", hint=FORM)
    for variable in rows[0]:
        if problem := variable_problem(variable):
            raise NoTable(f"{variable!r} is no name of a variable", hint=problem)
    _refuse_twice(rows)
    return rows


def _product(given: Mapping[str, Any]) -> list[Row]:
    for variable, values in given.items():
        if not isinstance(values, list) or not values:
            raise NoTable("is empty" if values == [] else "is no list of values", variable, FORM)
    check_count(math.prod(map(len, given.values())))
    return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


def _listed(given: Sequence[Row]) -> list[Row]:
    check_count(len(given))
    for number, row in enumerate(given):
        if set(row) != set(given[0]):
            raise NoTable(f"its variables are {', '.join(row)}, those of the first {', '.join(given[0])}", str(number))
    return [{variable: row[variable] for variable in given[0]} for row in given]


def check_count(count: int) -> None:
    """Raise `NoTable` where it would be more steps than a foreach may come to."""
    if count > MOST_STEPS:
        raise NoTable(f"comes to {count} steps (at most {MOST_STEPS})")


def _refuse_twice(rows: Sequence[Row]) -> None:
    seen = set()
    for row in rows:
        try:
            text = canonical_json(row)
        except ValueError as error:
            raise NoTable(f"{shown(row)} cannot be part of a key") from error
        if text in seen:
            raise NoTable(f"{shown(row)} is there twice")
        seen.add(text)


def shared(left: Sequence[Row], right: Sequence[Row]) -> list[str]:
    """The variables that two tables both have."""
    return [name for name in left[0] if name in right[0]]


def joined(left: Sequence[Row], right: Sequence[Row]) -> list[Row]:
    """Every pair of rows that agree on the variables that both have: without any, every pair.

    Raises:
        NoTable: there are too many.
    """
    both = shared(left, right)
    by_values: dict[str, list[Row]] = {}
    for row in right:
        by_values.setdefault(values(row, both), []).append(row)
    check_count(sum(len(by_values.get(values(row, both), ())) for row in left))
    return [{**row, **other} for row in left for other in by_values.get(values(row, both), ())]


def first_without_match(rows: Sequence[Row], others: Sequence[Row]) -> Row | None:
    """The first row that agrees with no other, as far as both tables have its variables."""
    both = shared(rows, others)
    there = {values(row, both) for row in others}
    return next(({name: row[name] for name in both} for row in rows if values(row, both) not in there), None)


def positions(rows: Sequence[Row]) -> dict[str, int]:
    """Where each row is, by its values: see `values`."""
    return {values(row, list(row)): number for number, row in enumerate(rows)}


def values(row: Row, names: Sequence[str]) -> str:
    """As they are in a key: 1 and true are two values, 1 and 1.0 are one."""
    return canonical_json([row[name] for name in names])


def shown(row: Row) -> str:
    """A row, or a part of one, in words."""
    return ", ".join(f"{name}: {value}" for name, value in row.items())
