"""When a Slurm job counts as ended: what is seen, over time, to an outcome."""

from __future__ import annotations

import pytest

from tasks.launch.commands import Seen
from tasks.launch.job_outcome import SETTLE, JobOutcome

LOST = 300.0


def word(reason: str, code: int) -> dict[str, object]:
    return {"job_id": "1", "reason": reason, "exit_code": code}


def seen(state: str, reason: str = "None") -> Seen:
    return Seen("1", state, reason)


def test_the_jobs_own_word_is_final() -> None:
    outcome = JobOutcome(LOST)
    assert outcome.by_marker(None) is None
    end = outcome.by_marker(word("exit", 0))
    assert end is not None and end.success
    end = outcome.by_marker(word("exit", 2))
    assert end is not None and not end.success and end.user_error
    end = outcome.by_marker(word("exit", 137))
    assert end is not None and not end.success and not end.user_error
    end = outcome.by_marker(word("walltime", 0))
    assert end is not None and not end.success
    assert outcome.by_marker(word("terminated", 143)) is None, "Slurm may run it again"


@pytest.mark.parametrize(
    "state", ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"]
)
def test_states_that_are_no_ends(state: str) -> None:
    outcome = JobOutcome(LOST)
    assert all(outcome.by_slurm(seen(state), word("terminated", 143), now) is None for now in (0, 1e3, 1e6))


def test_an_end_has_to_last() -> None:
    outcome = JobOutcome(LOST)
    assert outcome.by_slurm(seen("NODE_FAIL"), None, 0) is None
    assert outcome.by_slurm(seen("PENDING", "BeginTime"), None, SETTLE + 1) is None  # it was requeued
    assert outcome.by_slurm(seen("NODE_FAIL"), None, SETTLE + 2) is None
    end = outcome.by_slurm(seen("NODE_FAIL"), None, 2 * SETTLE + 3)
    assert end is not None and not end.success and "NODE_FAIL" in end.how


@pytest.mark.parametrize("marker", [None, word("terminated", 143)])
def test_a_cancelled_job_has_ended(marker: dict[str, object] | None) -> None:
    end = JobOutcome(LOST).by_slurm(seen("CANCELLED"), marker, 0)
    assert end is not None and "CANCELLED" in end.how


def test_completed_without_a_word_is_no_success() -> None:
    outcome = JobOutcome(LOST)
    assert outcome.by_slurm(seen("COMPLETED"), None, 0) is None  # a shared disk may be slow to show it
    end = outcome.by_slurm(seen("COMPLETED"), None, LOST)
    assert end is not None and not end.success and "shared disk" in end.how


def test_unknown_is_lost_only_after_the_grace() -> None:
    outcome = JobOutcome(LOST)
    assert outcome.by_slurm(None, None, 0) is None
    assert outcome.by_slurm(None, None, LOST - 1) is None
    end = outcome.by_slurm(None, None, LOST)
    assert end is not None and "lost" in end.how


def test_silence_and_unknown_do_not_add_up() -> None:
    outcome = JobOutcome(LOST)
    assert outcome.by_slurm(None, None, 0) is None
    outcome.silence()
    assert outcome.by_slurm(None, None, LOST + 1) is None
    assert outcome.by_slurm(seen("RUNNING"), None, LOST + 2) is None
    assert outcome.by_slurm(None, None, 2 * LOST + 2) is None
