"""Two checkpoints side by side: every score that both have, the difference and its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evo_core.evaluate.blocks import stderr
from evo_core.evaluate.results import aligned

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One score of both.

    Attributes:
        of: the task, group or data type.
        metric: its metric.
        a, b: the values; a_stderr and b_stderr their standard errors, None where unknown.
        difference: b - a.
        stderr: of the difference. Where `paired`, from the differences on the same documents, else from a_stderr and
            b_stderr as if the two were independent, which is an upper bound on the same text; None where unknown.
        same: whether both were asked the same; False also where a file does not say.
    """

    of: str
    metric: str
    a: float
    b: float
    a_stderr: float | None
    b_stderr: float | None
    difference: float
    stderr: float | None
    paired: bool
    same: bool


def compare(a: Results, b: Results) -> list[Comparison]:
    """The scores that both results have, in the order of the first."""
    return [*_holdout(a, b), *_tasks(a, b)]


def only_in_one(a: Results, b: Results) -> tuple[list[str], list[str]]:
    """Data types, tasks and groups that only the first, and only the second result has."""
    kinds = ("model", "tasks", "groups")
    missing = [
        [name for kind in kinds for name in x.get(kind, {}) if name not in y.get(kind, {})] for x, y in _both(a, b)
    ]
    return missing[0], missing[1]


def _both(a: Results, b: Results) -> list[tuple[Results, Results]]:
    return [(a, b), (b, a)]


def _holdout(a: Results, b: Results) -> Iterator[Comparison]:
    for name, one in a.get("model", {}).items():
        other = b.get("model", {}).get(name)
        if other is None:
            continue
        mine, its = one.get("blocks"), other.get("blocks")
        same = bool(mine and its and mine["targets"] == its["targets"])
        for metric, sums in (("loss", "nll"), ("acc", "hits")):
            paired = None
            if mine and its and same:
                differences = [y - x for x, y in zip(mine[sums], its[sums], strict=True)]
                paired = stderr(differences, mine["targets"])
            errors = one.get(f"{metric}_stderr"), other.get(f"{metric}_stderr")
            yield _row(name, metric, one[metric], other[metric], errors, paired, same)


def _tasks(a: Results, b: Results) -> Iterator[Comparison]:
    for kind in ("tasks", "groups"):
        for name, one in a.get(kind, {}).items():
            other = b.get(kind, {}).get(name)
            if other is None:
                continue
            same = kind == "tasks" and one["digest"] == other["digest"]
            for metric, found in one["metrics"].items():
                its = other["metrics"].get(metric)
                if its is None:
                    continue
                paired = None
                if same and metric in one["values"] and metric in other["values"]:
                    paired = _mean_stderr(
                        [y - x for x, y in zip(one["values"][metric], other["values"][metric], strict=True)]
                    )
                errors = found["stderr"], its["stderr"]
                yield _row(name, metric, found["value"], its["value"], errors, paired, same or kind == "groups")


def _row(
    of: str,
    metric: str,
    a: float,
    b: float,
    errors: tuple[float | None, float | None],
    paired: float | None,
    same: bool,
) -> Comparison:
    error = paired
    if error is None and errors[0] is not None and errors[1] is not None:
        error = math.hypot(errors[0], errors[1])
    return Comparison(of, metric, a, b, *errors, b - a, error, paired is not None, same)


def _mean_stderr(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def record(a: Results, b: Results) -> dict[str, Any]:
    """The comparison as plain data."""
    return {
        "a": {key: a.get(key) for key in ("checkpoint", "step", "tokens")},
        "b": {key: b.get(key) for key in ("checkpoint", "step", "tokens")},
        "rows": [asdict(row) for row in compare(a, b)],
    }


def comparison_table(a: Results, b: Results) -> str:
    """The comparison to read."""
    rows = compare(a, b)
    lines = [f"A: {_label(a)}", f"B: {_label(b)}", ""]
    if rows:
        cells = [["", "metric", "A", "B", "B - A", ""]]
        cells += [_cells(row) for row in rows]
        lines += [aligned(cells, left=(0, 1)), ""]
        if any(row.stderr is not None for row in rows):
            lines.append("± is one standard error; of a difference, over the same documents where both files hold them")
    else:
        lines.append("they have no score in common")
    for label, names in zip("AB", only_in_one(a, b), strict=True):
        if names:
            lines.append(f"only in {label}: {', '.join(names)}")
    return "\n".join(lines)


def _cells(row: Comparison) -> list[str]:
    a, b, difference = _shown(row.a, row.a_stderr), _shown(row.b, row.b_stderr), _shown(row.difference, row.stderr, "+")
    return [row.of, row.metric, a, b, difference, "" if row.same else "not the same data"]


def _shown(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def _label(results: Results) -> str:
    return f"{results.get('checkpoint', '?')}, step {results.get('step', '?')}"
