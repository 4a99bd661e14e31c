"""Runs whose parameters data ranks share (fsdp): the curve of one process, uneven texts, an error on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evo_core.errors import DataError
from tests.evaluate.test_isp import write_uneven
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run
from tests.train.test_isp_runs import GROWING, OFTEN, growing, said, same


def fsdp(size: int, **more: Any) -> dict[str, Any]:
    return {"zero1": {"size": size, "fsdp": True}, **more}


@pytest.mark.parametrize(
    ("ranks", "parallel", "copies"),
    [
        (2, fsdp(2), 2),
        pytest.param(4, fsdp(2), 4, marks=pytest.mark.slow),
        pytest.param(4, fsdp(2, tensor={"size": 2, "mode": "msp"}), 2, marks=pytest.mark.slow),
    ],
    ids=["all", "replicas", "rows"],
)
def test_the_curve_of_one_process(tmp_path: Path, ranks: int, parallel: dict[str, Any], copies: int) -> None:
    """With a batch that grows, and held-out texts of which one copy has more than another."""
    settings = GROWING | OFTEN | {"model__checkpoint": 0.5}
    alone = job(tmp_path, **settings | growing(2 * copies))
    write_uneven(tmp_path / "valid")
    run(alone, tmp_path / "one")
    shared = job(tmp_path, parallel=parallel, **settings | growing(2))
    run_on_ranks(run, ranks, shared, tmp_path / "many")
    same(curve(tmp_path / "one"), curve(tmp_path / "many"))


def test_a_batch_that_one_copy_cannot_read_ends_all(tmp_path: Path) -> None:
    """The others are in the middle of a step, whose parameters they get from it."""
    cfg = job(tmp_path, parallel=fsdp(2), **GROWING | growing(2))
    error = DataError("a damaged shard", file="train_000.bin", line=7)
    assert (
        run_on_ranks(said, 2, cfg, tmp_path / "run", 1, 5, error)
        == [(DataError, "train_000.bin:7: a damaged shard")] * 2
    )
