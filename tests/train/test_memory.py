"""Memory is looked at now and then."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.jobs import job, run


@pytest.mark.parametrize(("interval", "steps", "times"), [(2, 7, 3), (0, 51, 1), (-3, 49, 0), (100, 8, 0)])
def test_memory_is_looked_at_every_so_many_steps(tmp_path: Path, interval: int, steps: int, times: int) -> None:
    """0 and less mean 50, as in InternEvo; memory is told after each of the first 6 steps besides."""
    settings = {"ckpt__enable_save_ckpt": False, "data__total_steps": steps, "data__global_batch_tokens": 32}
    run(job(tmp_path, data__empty_cache_and_diag_interval=interval, **settings), tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("seconds of a step: data ") == times
    within_first = sum(step % interval == 0 for step in range(1, 7)) if interval > 0 else 0
    assert log.count("memory of rank 0: peak resident memory") == 6 + times - within_first
