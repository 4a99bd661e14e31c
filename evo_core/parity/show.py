"""Results as lines of a table, each printed when it is there, and as data for a script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from evo_core.parity.deviation import LOSS, NORM, Deviation
from evo_core.parity.layouts import Row
from evo_core.parity.matrix import Result

_NAME = "worst gradient"
_WIDTHS = {"zero1": 5, "mode": 14, "recompute": 9, "loss": 8, "norm": 8, "gradient": 8, _NAME: 36, "verdict": 7, "s": 6}
"""Of the columns behind the name of a row. Names stand at the left of theirs, numbers and words at the right."""


_COARSE = 1.0
"""A bar so high lets through what has nothing to do with the reference."""


class Table:
    """Lines under one another.

    Args:
        rows: whose names are to fit.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._width = max(len(name) for name in ("layout", *(row.name for row in rows)))

    def head(self) -> str:
        """What each column is."""
        return self._line("layout", tuple(_WIDTHS))

    def line(self, result: Result) -> str:
        """A row's numbers, and under them why it is not equal."""
        numbers: tuple[str, ...] = ("-", "-", "-", "")
        if (found := result.found) is not None:
            worst = found.worst_gradient
            numbers = (*(_short(found.worst_of(name).value) for name in (LOSS, NORM)), _short(worst.value), worst.name)
        verdict = "equal" if result.equal else "FAILED" if result.found is None else "MISS"
        line = self._line(result.row.name, (*_layout(result), *numbers, verdict, f"{result.seconds:.1f}"))
        return line if result.why is None else f"{line}\n{_indented(result.why)}"

    def _line(self, name: str, cells: Sequence[str]) -> str:
        columns = zip(cells, _WIDTHS.items(), strict=True)
        padded = [_end(cell, w).ljust(w) if of == _NAME else cell.rjust(w) for cell, (of, w) in columns]
        return "  ".join([name.ljust(self._width), *padded]).rstrip()


def summary(results: Sequence[Result], dtype: str) -> str:
    """One line of all, and one of those that show nothing."""
    equal = sum(result.equal for result in results)
    worst = max((result.found.worst.value for result in results if result.found), default=math.inf)
    within = "1e-12" if dtype == "float64" else "twice the deviation of one process"
    line = (
        f"{equal} of {len(results)} layouts train as one process does, in {dtype}: largest deviation {worst:.1e}, "
        f"allowed {within}"
    )
    if coarse := [result.row.name for result in results if result.bar >= _COARSE]:
        line += (
            f"\nin {', '.join(coarse)} one process is as far from float64 as a gradient is large: that they are equal "
            "says little"
        )
    return line


def as_data(results: Iterable[Result], dtype: str, notes: Sequence[str]) -> dict[str, Any]:
    """All results as plain data; a deviation that is infinite, or that there is none of, is null."""
    rows = [_as_data(result) for result in results]
    return {"dtype": dtype, "notes": list(notes), "equal": all(row["equal"] for row in rows), "rows": rows}


def _as_data(result: Result) -> dict[str, Any]:
    zero1, mode, recompute = _layout(result)
    found = result.found
    return {
        "layout": result.row.name,
        "ranks": result.ranks,
        "zero1": int(zero1),
        "mode": mode,
        "recompute": float(recompute),
        "loss": None if found is None else _plain(found.worst_of(LOSS)),
        "grad_norm": None if found is None else _plain(found.worst_of(NORM)),
        "gradient": None if found is None else _plain(found.worst_gradient),
        "bar": result.bar,
        "equal": result.equal,
        "why": result.why,
        "seconds": round(result.seconds, 3),
    }


def _plain(each: Deviation) -> dict[str, Any]:
    value = each.value if math.isfinite(each.value) else None
    return {"deviation": value, "name": each.name, "step": each.step}


def _layout(result: Result) -> tuple[str, str, str]:
    degrees, parallel = result.cfg.degrees(result.ranks), result.cfg.parallel
    pipeline, tensor, weight, model = parallel.pipeline, parallel.tensor, parallel.weight, result.cfg.model
    kinds = []
    if pipeline.size > 1:
        schedule = f"x{model.num_chunks}" if model.num_chunks > 1 else ""
        kinds.append(f"pp{pipeline.size}{schedule if pipeline.mode == '1F1B' else pipeline.mode.lower()}")
    if tensor.size > 1 or weight.size > 1:
        kinds.append(f"{tensor.mode}{tensor.size}" + (f"w{weight.size}" if tensor.mode == "isp" else ""))
    return str(degrees.zero1), " ".join(kinds) or "dp", f"{float(model.checkpoint):g}"


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _end(text: str, width: int) -> str:
    """The end of a name says more than its beginning."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())
