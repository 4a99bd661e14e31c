"""Runs that are killed at random, again and again, by every signal; then one that is left alone.

Two pipelines share steps, in two stores, and their steps change names between the kills. However it went, in the end
everything is made, once, and nothing is left: no process, no claim, no job, no draft, no attempt.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tasks.store import Store

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[3]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SHARED = """\
  {start}: {{uses: "tests.flows.pipeline.kinds:Number", params: {{file: start.txt}}}}
  {first}:
    uses: tests.flows.pipeline.kinds:Add
    needs: {{to: {start}}}
    params: {{amount: 2}}
    runtime: {{seconds: 0.7}}
  {job}: {{uses: "tests.flows.orchestration.kinds:Sleep", params: {{seconds: 0.7}}}}
"""
PIPELINES = {
    "one": '  {last}: {{uses: "tests.flows.pipeline.kinds:Add", needs: {{to: {first}, more: {start}}}}}\n',
    "two": '  {last}: {{uses: "tests.flows.pipeline.kinds:Add", needs: {{to: {first}}}, params: {{amount: 5}}, '
    "runtime: {{seconds: 0.5}}}}\n",
}
RESULTS = {"one": 40 + 2 + 40 + 1, "two": 40 + 2 + 5}
EVERY_KEY = ["test.add", "test.add", "test.add", "test.number", "test.sleep"]
"""Kinds of what both pipelines make together."""


class Series:
    """Two pipelines, two stores, and the processes that work on them."""

    def __init__(self, folder: Path, seed: int, *, server: bool) -> None:
        self.folder, self.server = folder, server
        self.random = random.Random(seed)
        self.stores = [Store(folder / "here"), Store(folder / "there")]
        self.started: list[subprocess.Popen[str]] = []
        (folder / "start.txt").write_text("40")
        self.rename()

    def rename(self) -> None:
        """Give every step another name, in both pipelines at once."""
        names = {step: f"{step}{self.random.randrange(5)}" for step in ("start", "first", "job", "last")}
        for name, own in PIPELINES.items():
            text = f"pipeline: {name}\nsteps:\n{(SHARED + own).format(**names)}publish: {{{name}: {names['last']}}}\n"
            (self.folder / f"{name}.yaml").write_text(text)

    def start(self, pipeline: str, store: Store) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SLURM"))}
        log = self.folder / f"log-{len(self.started)}.txt"
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", f"{pipeline}.yaml", *["--no-server"] * (not self.server)],
            cwd=self.folder,
            env=environment | {"EVO_ROOT": str(store.root), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        process.log = log  # type: ignore[attr-defined]
        self.started.append(process)
        return process

    def kill_some(self, number: signal.Signals, *, in_a_step: bool) -> None:
        """Start one run, or two at once, and send the signal while a step runs or at any moment before."""
        store = self.random.choice(self.stores)
        running = [self.start(name, store) for name in self.random.sample(list(PIPELINES), self.random.choice([1, 2]))]
        if in_a_step:
            wait_until(lambda: any("started" in said(run) or run.poll() is not None for run in running), 240)
        time.sleep(self.random.uniform(0, 1.5))
        for run in running:
            if run.poll() is None:
                run.send_signal(number)
        for run in running:
            run.wait(60)
        wait_until(lambda: not self.processes(), 60)

    def processes(self) -> list[int]:
        """Living processes that work on these stores."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"EVO_ROOT={self.folder}/".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:  # it has just ended
                continue
        return found

    def close(self) -> None:
        for run in self.started:
            if run.poll() is None:
                run.kill()
                run.wait()


def said(run: subprocess.Popen[str]) -> str:
    return str(run.log.read_text())  # type: ignore[attr-defined]


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def complete(series: Series) -> None:
    """What has to be true after the last run, whatever came before."""
    for store in series.stores:
        for pipeline in PIPELINES:
            series.rename()
            run = series.start(pipeline, store)
            assert run.wait(120) == 0, said(run)
        for pipeline, result in RESULTS.items():
            entry = store.refs.resolve(f"ref:{pipeline}")
            artifact = store.with_key(entry["key"])
            assert artifact is not None and artifact.damage() is None
            assert (artifact.path / "number").read_text() == str(result)
        homes = list((store.root / "artifacts").iterdir())
        assert Counter(home.name.rpartition("-")[0] for home in homes) == Counter(EVERY_KEY)
        for home in homes:
            attempt = json.loads((home / "manifest.json").read_text())["attempt"]
            assert [path.name for path in (home / "attempts").iterdir()] == [str(attempt)]
        left = [p for name in ("claim*", "job.json", "local.json") for p in store.root.glob(f"state/*/{name}")]
        assert left + list(store.root.rglob("*.tmp")) == []
    assert series.processes() == []


@pytest.fixture
def series(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Series]:
    series = Series(tmp_path, seed=17, server=request.param)
    yield series
    series.close()


def shuffled(kills: int, signals: Sequence[signal.Signals] = SIGNALS) -> list[signal.Signals]:
    numbers = [signals[n % len(signals)] for n in range(kills)]
    random.Random(23).shuffle(numbers)
    return numbers


@pytest.mark.parametrize(
    ("series", "kills"),
    [
        pytest.param(False, 4, id="without a server"),
        pytest.param(False, 50, id="without a server, long", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
        pytest.param(True, 50, id="with a server, long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
    indirect=["series"],
)
def test_a_series_of_kills_ends_complete(series: Series, kills: int) -> None:
    for turn, number in enumerate(shuffled(kills)):
        series.rename()
        series.kill_some(number, in_a_step=turn % 2 == 0)
    complete(series)
