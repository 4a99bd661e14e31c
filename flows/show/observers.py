"""Several views of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.pipeline.events import ArtifactRef, Observer
from flows.pipeline.plan import Plan, PlannedStep


class Observers:
    """An observer that passes everything on to others, in order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def on_plan(self, plan: Plan) -> None:
        for observer in self.observers:
            observer.on_plan(plan)

    def on_step_start(self, step: PlannedStep) -> None:
        for observer in self.observers:
            observer.on_step_start(step)

    def on_progress(self, step: PlannedStep, progress: Mapping[str, Any]) -> None:
        for observer in self.observers:
            observer.on_progress(step, progress)

    def on_step_end(self, step: PlannedStep, ref: ArtifactRef | None, error: BaseException | None) -> None:
        for observer in self.observers:
            observer.on_step_end(step, ref, error)

    def on_message(self, step: PlannedStep | None, line: str) -> None:
        for observer in self.observers:
            observer.on_message(step, line)
