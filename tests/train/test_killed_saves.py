"""A run that is killed -9 at random moments of its saves goes on from a whole checkpoint, with the same curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.killed_in_saves import Job, kill_in_saves
from tests.train.watched import Disk

pytestmark = pytest.mark.faults

WHEN = pytest.mark.parametrize("behind", [False, True], ids=["saved in the step", "saved in the background"])


def kills(tmp_path: Path, times: int, *behind: bool) -> int:
    """Kill a run; of the kills, those that left an incomplete checkpoint."""
    job = Job(tmp_path, Disk(tmp_path / "ckpt"), steps=8 * times)
    expected = job.undisturbed()
    tally = kill_in_saves(job, times, behind=behind)
    job.finish(expected)
    return tally.before_the_end


def test_a_few_times(tmp_path: Path) -> None:
    kills(tmp_path, 2, False, True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@WHEN
def test_many_times(tmp_path: Path, behind: bool) -> None:
    assert kills(tmp_path, 50, behind) >= 10
