"""The folder in which a step keeps what outlives an attempt, such as the checkpoints of a training."""

from __future__ import annotations

import pytest

from flows.pipeline.engine import StepFailed
from tests.flows.pipeline.conftest import Bench


def starts(bench: Bench) -> int:
    """How often the step was started in the work folder as it is now."""
    home = bench.store.artifact("first", bench.plan().step("first").key).home
    return len((home / "work" / "starts").read_text().splitlines())


def test_it_survives_failed_attempts_and_a_forced_one_begins_with_an_empty_one(bench: Bench) -> None:
    """Making a step again must not resume from what the one before it had left: that would be the same model."""
    with pytest.raises(StepFailed):
        bench.run("steps.first.runtime.fail=true")
    bench.run()
    assert starts(bench) == 2
    bench.run(force=["first"])
    assert starts(bench) == 1
    with pytest.raises(StepFailed):
        bench.run("steps.first.runtime.fail=true", force=["first"])
    assert starts(bench) == 1
