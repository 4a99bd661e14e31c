"""What Prefect's pages show of a run: the plan, progress, a card per step, scores, lineage, the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from flows.pipeline.events import ArtifactRef
from flows.pipeline.plan import Plan, PlannedStep
from flows.show import humanize, markdown
from flows.show.score_tables import table_with
from tasks.store import Store

EVERY = 3.0
"""Seconds between two updates of a step's progress page."""
LONG = 5.0
"""Seconds after which a step gets a progress page at all."""

log = logging.getLogger(__name__)


class PrefectObserver:
    """Writes Prefect artifacts and log lines, from within the flow run and its task runs.

    Prefect only shows: a server that is gone or slow costs pages and never a step.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._progress: dict[str, _Progress] = {}
        self._pages: dict[str, object] = {}
        self._scored: set[str] = set()
        self._warned = threading.Event()

    def on_plan(self, plan: Plan) -> None:
        self._show(
            create_table_artifact,
            key=markdown.page_key(plan, "plan"),
            table=markdown.plan_rows(plan),
            description="Plan",
        )

    def on_step_start(self, step: PlannedStep) -> None:
        self._progress[step.name] = _Progress(markdown.page_key(self.plan, step.name, "progress"), step.name)

    def on_progress(self, step: PlannedStep, progress: Mapping[str, Any]) -> None:
        if step.name in self._progress:
            self._show(self._progress[step.name].update, progress)

    def on_step_end(self, step: PlannedStep, ref: ArtifactRef | None, error: BaseException | None) -> None:
        progress = self._progress.pop(step.name, None)
        if ref is None:
            return
        if progress is not None:
            self._show(progress.finish)
        self._show(self._card, step, ref)

    def on_message(self, step: PlannedStep | None, line: str) -> None:
        get_run_logger().info("%s", line)

    def on_end(self, refs: Mapping[str, ArtifactRef]) -> None:
        """After the last step, whatever became of it."""
        self._show(
            create_markdown_artifact,
            key=markdown.page_key(self.plan, "lineage"),
            markdown=markdown.lineage(self.plan, refs, self._pages),
            description="Lineage",
        )

    def _card(self, step: PlannedStep, ref: ArtifactRef) -> None:
        artifact = self.store.artifact(step.kind.name, step.key)
        key = markdown.page_key(self.plan, step.name)
        scores = None
        if artifact.type == "scores":
            self._scored.add(step.name)
            scores = table_with(step, self.plan, self._scored, self.store)
        text = markdown.card(step, ref, artifact, self._pages, scores)
        page = create_markdown_artifact(key=key, markdown=text, description=step.name)
        self._pages[step.name] = page  # its id: this is no coroutine in a thread without an event loop
        if scores is not None:
            table = markdown.score_rows(scores)
            create_table_artifact(key=f"{key}-table", table=table, description="Held-out scores")

    def _show(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            level = logging.DEBUG if self._warned.is_set() else logging.WARNING
            log.log(level, "Prefect does not take what it should show (the run goes on): %s", error)
            self._warned.set()


class _Progress:
    """The progress page of one step: begun when the step turns out to be long, updated now and then."""

    def __init__(self, key: str, step: str) -> None:
        self.key, self.step = key, step
        self.began = self.updated = time.monotonic()
        self.page: Any = None

    def update(self, progress: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self.began < LONG or (self.page is not None and now - self.updated < EVERY):
            return
        self.updated = now
        done, line = humanize.percent(progress), f"{self.step}: {humanize.progress_line(progress)}"
        if self.page is None:
            self.page = create_progress_artifact(done, key=self.key, description=line)
        else:
            update_progress_artifact(self.page, done, description=line)

    def finish(self) -> None:
        if self.page is not None:
            update_progress_artifact(self.page, 100.0, description=f"{self.step}: done")
