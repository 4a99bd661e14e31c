"""What a run tells whoever watches it, and the small record that passes from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel

from tasks.store.trouble import storage_trouble

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


class StepFailed(Exception):
    """A step of the plan did not make its artifact. `cause` is the error as the step raised it."""

    def __init__(self, step: str, cause: BaseException) -> None:
        super().__init__(f"step {step}: {reason(cause)}")
        self.step, self.cause = step, cause


def reason(error: BaseException) -> str:
    """Why a step failed, in words: an exception's own, where it has any that mean something by themselves."""
    if isinstance(error, SystemExit):
        return f"its code called sys.exit({'' if error.code is None else repr(error.code)})"
    if isinstance(error, KeyError | StopIteration | KeyboardInterrupt) or not str(error):
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return storage_trouble(error) or str(error)
