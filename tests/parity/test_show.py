"""The table of results: what stands in its columns for a layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.parity.job import job, small_model, training
from evo_core.parity.layouts import LAYOUTS, Layout, Row, settings_of
from evo_core.parity.matrix import Result
from evo_core.parity.show import Table, as_data


def result(layout: Layout, folder: Path) -> Result:
    row = Row(layout.name, layout)
    cfg = job(training(folder), small_model(), *settings_of(row), dtype="float64")
    return Result(row, cfg, layout.ranks, None, 1e-12, None, 1.0)


@pytest.mark.parametrize(
    ("parallel", "chunks", "mode"),
    [
        ({"zero1": {"size": 2}}, 1, "dp"),
        ({"tensor": {"size": 2, "mode": "fsp"}}, 1, "fsp2"),
        ({"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 4}}, 1, "isp2w4"),
        ({"tensor": {"size": 1, "mode": "isp"}, "weight": {"size": 2}}, 1, "isp1w2"),
        ({"tensor": {"size": 4, "mode": "isp"}}, 1, "isp4w1"),
        ({"tensor": {"size": 1, "mode": "isp"}}, 1, "dp"),
        ({"pipeline": {"size": 2}, "tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 2}}, 2, "pp2x2 isp2w2"),
    ],
)
def test_the_mode_of_a_layout(parallel: dict[str, dict[str, int]], chunks: int, mode: str, tmp_path: Path) -> None:
    (row,) = as_data([result(Layout("a", 4, parallel, chunks), tmp_path)], "float64", [])["rows"]
    assert row["mode"] == mode


def test_columns_are_wide_enough_for_every_layout(tmp_path: Path) -> None:
    results = [result(layout, tmp_path) for layout in LAYOUTS]
    table = Table([each.row for each in results])
    end = table.head().index("mode") + len("mode")
    assert all(table.line(each)[end - 1] != " " and table.line(each)[end] == " " for each in results)
