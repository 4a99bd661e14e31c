"""Results of an evaluation: the JSON file, and tables to read.

The file holds ``checkpoint``, ``step``, ``tokens`` and what was measured: ``model`` and ``baselines`` (held-out text by
type, `evo_core.evaluate.holdout`), ``tasks``, ``groups`` and ``harness`` (`evo_core.evaluate.harness.run`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evo_core.errors import DataError
from evo_core.results_folder import writing
from evo_core.storage.files import write_file


def write(path: Path, scores: Mapping[str, Any]) -> None:
    """Write results as JSON, all or nothing.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(path, "--output"):
        write_file(path, json.dumps(scores, indent=1))


def read(path: Path) -> dict[str, Any]:
    """Read a file that `write` wrote.

    Raises:
        DataError: there is none, or it holds no results.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from error
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=path) from error
    if not isinstance(content, dict) or not ({"model", "tasks"} & set(content)):
        raise DataError("holds no scores", file=path, hint="give a file that evo evaluate wrote")
    return content


def table(scores: Mapping[str, Any]) -> str:
    """What was measured, as one or two tables."""
    parts = []
    if scores.get("model"):
        parts.append(holdout_table(scores))
    if scores.get("tasks"):
        parts.append(task_table(scores))
    return "\n\n".join(parts)


def holdout_table(scores: Mapping[str, Any]) -> str:
    """A row for each data type, the model beside the baselines."""
    baselines: Mapping[str, Any] = scores.get("baselines", {})
    rows = [["type", "tokens", "loss", "perplexity", "acc", *(f"{name} loss" for name in baselines)]]
    for data_type, score in scores["model"].items():
        row = [data_type, f"{score['tokens']:,}", f"{score['loss']:.4f}", f"{score['perplexity']:.2f}"]
        row.append(f"{score['acc']:.4f}")
        row += [f"{of_type[data_type]['loss']:.4f}" for of_type in baselines.values()]
        rows.append(row)
    return aligned(rows)


def task_table(scores: Mapping[str, Any]) -> str:
    """A row for each metric of each task and group."""
    rows = [["task", "documents", "shots", "metric", "value", "stderr"]]
    for name, task in scores["tasks"].items():
        for metric, found in task["metrics"].items():
            rows.append([name, str(task["documents"]), str(task["shots"]), metric, *_value(found)])
    for name, group in scores.get("groups", {}).items():
        for metric, found in group["metrics"].items():
            rows.append([name, "", "", metric, *_value(found)])
    return aligned(rows)


def _value(found: Mapping[str, Any]) -> list[str]:
    return [f"{found['value']:.4f}", "" if found["stderr"] is None else f"{found['stderr']:.4f}"]


def aligned(rows: Sequence[Sequence[str]], left: Iterable[int] = ()) -> str:
    """Rows of cells as lines whose columns end under one another; the columns `left` begin under one another."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = set(left)
    lines = (
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
