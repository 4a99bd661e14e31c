"""`kill -9` of a run in the middle of each step, then the same command again: same keys, same loss curve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from tests.endtoend.conftest import HERE, KINDS, STEPS, Evo

TINY = str(HERE / "tiny.yaml")


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def in_the_middle_of(evo: Evo, step: str) -> bool:
    """The step has an attempt that is not committed; training is past its second checkpoint."""
    homes = [home for home in evo.root.glob(f"artifacts/{KINDS[step]}-*") if not (home / "manifest.json").exists()]
    if step == "model":
        return any(len(list(home.glob("work/ckpt/*/manifest.json"))) >= 2 for home in homes)
    return any(list(home.glob("attempts/*")) for home in homes)


def in_the_middle_or_over(evo: Evo, step: str, run: subprocess.Popen[str]) -> bool:
    return in_the_middle_of(evo, step) or run.poll() is not None


@pytest.mark.faults
@pytest.mark.parametrize("steps", [["model"], pytest.param(STEPS, marks=pytest.mark.slow)], ids=["training", "every"])
def test_killed_in_steps_it_ends_as_if_nothing_had_happened(whole: Evo, evo: Evo, steps: Sequence[str]) -> None:
    for step in steps:
        run = evo.start("run", TINY, "--no-server")
        wait_until(partial(in_the_middle_or_over, evo, step, run))
        assert run.poll() is None, f"it ended before it could be killed in {step}: {run.communicate()[0]}"
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        wait_until(lambda: evo.processes() == [], 20)
        assert evo.plan(TINY)[step]["action"] == "run"
    to_samples = steps == STEPS
    printed = evo("run", TINY, "--no-server", *([] if to_samples else ["--targets", "scores"]))
    assert ("samples made" if to_samples else "scores made") in printed
    ours, theirs = evo.plan(TINY), whole.plan(TINY)
    assert {name: ours[name]["key"] for name in STEPS} == {name: theirs[name]["key"] for name in STEPS}
    assert evo.curve() == whole.curve()
    scores = [json.loads((e.artifact("scores") / "scores.json").read_text()) for e in (evo, whole)]
    for part in ("model", "baselines"):
        assert scores[0][part] == scores[1][part]
    if to_samples:
        samples = [(e.artifact("samples") / "samples.jsonl").read_text() for e in (evo, whole)]
        assert samples[0] == samples[1]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_training_it_saves_ends_and_carries_on(whole: Evo, evo: Evo, number: int, status: int) -> None:
    run = evo.start("run", TINY, "--no-server", "--targets", "model")
    wait_until(lambda: in_the_middle_of(evo, "model"))
    os.kill(run.pid, number)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == status, printed
    assert evo.processes() == []
    evo("run", TINY, "--no-server", "--targets", "model")
    assert evo.curve() == whole.curve()
