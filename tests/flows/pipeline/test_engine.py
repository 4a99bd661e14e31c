"""A run: reuse, failure, stopping, two at once, and what is left when a process dies at any point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import flows.pipeline.engine as engine
import flows.pipeline.step as life
from flows.orchestration.local_run import run_without_server
from flows.pipeline.engine import run_plan
from flows.pipeline.failures import StepFailed
from flows.show.report import report_path
from tasks.launch.launcher import Stopped
from tasks.store import commit as commits
from tasks.store.json_file import read_json
from tests.flows.pipeline.conftest import Bench, Recorder
from tests.forked import FORK


def leftovers(bench: Bench) -> list[str]:
    """Attempts that no manifest names."""
    attempts = bench.store.root.glob("artifacts/*/attempts/*")
    return [str(p) for p in attempts if not (p / "attempt.json").exists()]


def starts(bench: Bench, step: str) -> int:
    """How often a step of kind Add began."""
    home = bench.store.artifact(step, bench.plan().step(step).key).home
    return len((home / "work" / "starts").read_text().split())


def test_a_run_makes_every_artifact_and_the_next_reuses_them(bench: Bench) -> None:
    first = bench.run()
    assert bench.number("second") == 40 + 2 + 40 + 1
    assert [e for e in first.events if e[0] == "made"] == [("made", n) for n in ("start", "first", "second")]
    second = bench.run()
    assert {e for e in second.events if e[0] != "says"} == {
        ("plan", "sums"), ("reused", "start"), ("reused", "first"), ("reused", "second")
    }  # fmt: skip
    assert bench.store.refs.versions("sum") != []
    assert len(bench.store.refs.versions("sum")) == 1


def test_a_manifest_says_what_where_from_and_with_which_code(bench: Bench) -> None:
    bench.run()
    planned = bench.plan().step("second")
    artifact = bench.store.artifact("second", planned.key)
    manifest = artifact.manifest
    assert manifest["key"] == planned.key
    assert manifest["inputs"]["to"] == {"from": "first", "key": bench.plan().step("first").key}
    assert [file["path"] for file in manifest["files"]] == ["number"]
    assert manifest["statistics"] == {"number": 83}
    assert manifest["provenance"]["code"]["pipeline/kinds.py"]
    assert manifest["provenance"]["run"] == bench.store.runs()[-1]["run"]


def test_force_makes_a_step_again_and_the_old_artifact_stays_until_then(bench: Bench) -> None:
    bench.run()
    home = bench.store.artifact("first", bench.plan().step("first").key).home
    with pytest.raises(StepFailed):
        bench.run("steps.first.runtime.fail=true", force=["first"])
    assert read_json(home / "manifest.json")["attempt"] == 1
    again = bench.run(force=["first"])
    assert [e for e in again.events if e[0] == "made"] == [("made", "first"), ("made", "second")]
    assert read_json(home / "manifest.json")["attempt"] > 1


def test_a_failure_stops_what_follows_keeps_what_is_done_and_leaves_nothing_half_made(bench: Bench) -> None:
    with pytest.raises(StepFailed, match="step first: the sum overflowed"):
        bench.run("steps.first.runtime.fail=true")
    assert bench.actions() == {"start": "reuse", "first": "run", "second": "run"}
    assert leftovers(bench) == []
    bench.run()
    assert bench.number("second") == 83


def test_a_run_without_a_server_is_reported_however_it_ends(bench: Bench) -> None:
    plan = bench.plan("steps.second.runtime.fail=true")
    with pytest.raises(StepFailed):
        run_without_server(plan, bench.store, Recorder(), threading.Event())
    assert "the sum overflowed" in report_path(plan, bench.store).read_text()
    plan, recorder = bench.plan(), Recorder()
    report_path(plan, bench.store).mkdir(parents=True)
    assert set(run_without_server(plan, bench.store, recorder, threading.Event())) == {"start", "first", "second"}
    assert any("the report of the run could not be written" in line for what, line in recorder.events if what == "says")


def test_a_stopped_run_carries_on(bench: Bench) -> None:
    stop, recorder = threading.Event(), Recorder()
    plan = bench.plan("steps.first.runtime.seconds=30")
    threading.Thread(target=lambda: recorder.started.wait() and stop.set()).start()
    with pytest.raises(Stopped):
        run_plan(plan, bench.store, recorder, stop)
    assert ("Stopped", "first") in recorder.events
    assert leftovers(bench) == []
    bench.run()
    assert bench.number("second") == 83


def test_two_runs_at_once_make_each_artifact_once(bench: Bench) -> None:
    def run() -> None:
        bench.run("steps.first.runtime.seconds=1")

    others = [FORK.Process(target=run) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [0, 0, 0]
    assert starts(bench, "first") == 1
    assert starts(bench, "second") == 1


def test_a_run_takes_over_from_one_that_died(bench: Bench) -> None:
    def run() -> None:
        bench.run("steps.first.runtime.kill=true")

    dead = FORK.Process(target=run)
    dead.start()
    dead.join(60)
    assert dead.exitcode == -signal.SIGKILL
    assert len(leftovers(bench)) == 1
    assert bench.actions()["first"] == "run"
    bench.run()
    assert bench.number("second") == 83
    assert leftovers(bench) == []


@pytest.mark.faults
@pytest.mark.parametrize(
    "place",
    [
        (life, "_claim_and_make"),
        (life, "_attempt"),
        (commits, "seal"),
        (commits, "commit"),
        (life, "_forget_job"),
        (engine, "publish"),
    ],
    ids=lambda place: place[1],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_anywhere_the_next_run_finishes_with_the_same_keys(
    bench: Bench, place: tuple[object, str], when: str
) -> None:
    module, name = place
    before = {step.name: step.key for step in bench.plan().steps}

    def dying(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            result = call(*args, **kwargs) if when == "after" else None
            os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    def run() -> None:
        setattr(module, name, dying(getattr(module, name)))
        bench.run()

    dead = FORK.Process(target=run)
    dead.start()
    dead.join(60)
    assert dead.exitcode == -signal.SIGKILL
    for artifact in bench.store.artifacts():  # whatever can be seen is whole
        for file in artifact.manifest["files"]:
            assert (artifact.path / file["path"]).stat().st_size == file["size"]
    bench.run()
    assert bench.number("second") == 83
    assert {step.name: step.key for step in bench.plan().steps} == before
    assert set(bench.actions().values()) == {"reuse"}
    assert leftovers(bench) == []
    assert not list(bench.store.root.rglob("claim.json"))


def test_a_run_waits_for_another_and_takes_its_artifact(bench: Bench) -> None:
    slow = FORK.Process(target=lambda: bench.run("steps.first.runtime.seconds=2"))
    slow.start()
    while not list(bench.store.root.glob("artifacts/test.add-*/work/starts")):
        time.sleep(0.02)
    assert bench.actions()["first"] == "attach"
    recorder = bench.run()
    slow.join(60)
    assert ("attached", "first") in recorder.events
    assert any(e[0] == "says" and e[1].startswith("waiting for run") for e in recorder.events)
    assert starts(bench, "first") == 1


def test_an_artifact_is_found_under_another_steps_name(bench: Bench) -> None:
    bench.run()
    bench.file.write_text(bench.file.read_text().replace("first", "foremost"))
    assert set(bench.actions().values()) == {"reuse"}


def test_the_store_moves(bench: Bench, tmp_path: Path) -> None:
    from tasks.store import open_store

    bench.run()
    bench.store.root.rename(tmp_path / "moved")
    bench.store = open_store(tmp_path / "moved")
    assert set(bench.actions().values()) == {"reuse"}
    assert bench.number("second") == 83


def test_a_run_that_reuses_everything_imports_nothing_heavy(bench: Bench) -> None:
    bench.run()
    words = ["evo", "run", str(bench.file), "--no-server", "--root", str(bench.store.root)]
    heavy = {"torch", "prefect", "matplotlib", "boto3"}
    code = (
        f"import sys; sys.argv = {words}\nfrom flows.cli import main\nmain()\n"
        f"print(*({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "0 steps made, 3 reused" in ended.stdout and ended.stderr == "\n"
