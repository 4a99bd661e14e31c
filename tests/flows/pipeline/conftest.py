"""A small pipeline in a fresh folder, and a way to run it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline.engine import run_plan
from flows.pipeline.events import ArtifactRef
from flows.pipeline.plan import Plan, PlannedStep, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.store import Store, open_store

TEXT = """\
pipeline: sums
vars: {amount: 2}
steps:
  start:
    uses: tests.flows.pipeline.kinds:Number
    params: {file: start.txt}
  first:
    uses: tests.flows.pipeline.kinds:Add
    needs: {to: start}
    params: {amount: "${vars.amount}"}
  second:
    uses: tests.flows.pipeline.kinds:Add
    needs: {to: first, more: start}
publish: {sum: second}
"""


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.progress: list[Mapping[str, Any]] = []
        self.started = threading.Event()

    def on_plan(self, plan: Plan) -> None:
        self.events.append(("plan", plan.pipeline.name))

    def on_step_start(self, step: PlannedStep) -> None:
        self.events.append(("start", step.name))

    def on_progress(self, step: PlannedStep, progress: Mapping[str, Any]) -> None:
        self.progress.append(progress)
        self.started.set()

    def on_step_end(self, step: PlannedStep, ref: ArtifactRef | None, error: BaseException | None) -> None:
        self.events.append((ref.action if ref else type(error).__name__, step.name))

    def on_message(self, step: PlannedStep | None, line: str) -> None:
        self.events.append(("says", line))


class Bench:
    """A pipeline file, a store, and short names for what tests do with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "sums.yaml"
        self.file.write_text(TEXT)
        (folder / "start.txt").write_text("40")
        self.store: Store = open_store(folder / "store")

    def plan(self, *overrides: str, targets: Sequence[str] = (), force: Sequence[str] = ()) -> Plan:
        return make_plan(load_pipeline(self.file, overrides), self.store, targets=targets, force=force)

    def run(self, *overrides: str, targets: Sequence[str] = (), force: Sequence[str] = ()) -> Recorder:
        recorder = Recorder()
        plan = self.plan(*overrides, targets=targets, force=force)
        self.refs = run_plan(plan, self.store, recorder, threading.Event())
        return recorder

    def number(self, step: str, *overrides: str) -> int:
        planned = self.plan(*overrides).step(step)
        return int((self.store.artifact(step, planned.key).path / "number").read_text())

    def actions(self, *overrides: str) -> dict[str, str]:
        return {step.name: step.action for step in self.plan(*overrides).steps}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
