"""What a run tells whoever watches it, and the small record that passes from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel

if TYPE_CHECKING:
    from flows.pipeline.plan import Plan, PlannedStep


class ArtifactRef(BaseModel):
    """What passes from step to step: small, plain, and enough to find the artifact."""

    step: str
    kind: str
    type: str
    key: str
    uri: str
    action: Literal["reused", "made", "attached"]


class Observer(Protocol):
    """Sees a run. Called from the threads of the steps."""

    def on_plan(self, plan: Plan) -> None:
        """Before anything runs."""

    def on_step_start(self, step: PlannedStep) -> None:
        """The step is not reused: it starts, or waits for another run's work."""

    def on_progress(self, step: PlannedStep, progress: Mapping[str, Any]) -> None:
        """{"done", "total", "unit", ...} of a running step."""

    def on_step_end(self, step: PlannedStep, ref: ArtifactRef | None, error: BaseException | None) -> None:
        """The artifact is there, or the step failed or was stopped."""

    def on_message(self, step: PlannedStep | None, line: str) -> None:
        """A line worth showing."""
