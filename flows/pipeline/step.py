"""The life of one step.

Claim the key (or wait for whoever holds it) → a fresh attempt folder (or the one whose job still lives) → the kind
makes the artifact there → the attempt is sealed → the commit. A process may die between any two of these; what it
leaves is invisible to readers and is taken up or cleared away by the next run.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evo_core.errors import DataError, UserError
from evo_core.storage.atomic import clear_drafts
from evo_core.storage.files import delete
from flows.pipeline.events import ArtifactRef, Observer
from flows.pipeline.failures import StepFailed
from flows.pipeline.plan import Plan, PlannedStep
from flows.pipeline.statistics import plain_statistics
from flows.pipeline.step_log import StepLog, log_path
from tasks.kind import StepContext
from tasks.launch.follow import read_progress
from tasks.launch.launcher import LaunchRuntime, Stopped
from tasks.launch.record import RECORD, read_attempt
from tasks.store import Artifact, Store
from tasks.store import commit as commits
from tasks.store.claim import Claim, holder, known_dead
from tasks.store.provenance import provenance

POLL = 0.5
"""Seconds between looks at a step that another run is making."""


def run_step(plan: Plan, step: PlannedStep, store: Store, observer: Observer, stop: threading.Event) -> ArtifactRef:
    """Make one step's artifact, or find it made.

    Raises:
        StepFailed: with the step's own error as its cause.
        Stopped: `stop` was set.
    """
    artifact = store.artifact(step.kind.name, step.key)
    reused = _is_made(plan, step, artifact)
    if not reused:
        observer.on_step_start(step)
    try:
        if reused:
            _tidy(store.state(step.key), artifact.home, plan.run_id)
            ref = _ref(step, _whole(artifact, step.name), "reused")
        else:
            ref = _claim_and_make(plan, step, store, observer, stop)
    except BaseException as raised:
        error = plan.pipeline.secrets.concealed(raised)
        observer.on_step_end(step, None, error)
        if isinstance(error, Stopped):
            raise
        raise StepFailed(step.name, error) from error  # sys.exit too: a kind's way out is not the run's
    observer.on_step_end(step, ref, None)
    return ref


def _is_made(plan: Plan, step: PlannedStep, artifact: Artifact) -> bool:
    """Whether the artifact is there and need not be made again. Of two steps with one key that are forced, the second
    takes what the first has made."""
    if not artifact.exists:
        return False
    return not step.force or (artifact.damage() is None and artifact.manifest["provenance"].get("run") == plan.run_id)


def _whole(artifact: Artifact, step: str) -> Artifact:
    """The artifact, if it is as its manifest says.

    Raises:
        DataError: it is damaged; the message says what makes it anew.
    """
    if (damage := artifact.damage()) is not None:
        raise DataError(f"the artifact is damaged: {damage}", hint=f"make it anew with --force {step}")
    return artifact


def _claim_and_make(
    plan: Plan, step: PlannedStep, store: Store, observer: Observer, stop: threading.Event
) -> ArtifactRef:
    state = store.state(step.key)
    state.mkdir(parents=True, exist_ok=True)
    waited = False
    while (claim := Claim.acquire(state, plan.run_id, stop=stop)) is None:
        if not waited:
            held = holder(state)
            if held is not None:
                observer.on_message(step, f"waiting for run {held['run']} (process {held['pid']} on {held['host']})")
            waited = True
        if progress := read_progress(state):
            observer.on_progress(step, progress)
        if stop.wait(POLL):
            raise Stopped(f"stopped waiting for {step.name}; the other run goes on")
    with claim:
        clear_drafts(state)
        artifact = store.artifact(step.kind.name, step.key)
        if _is_made(plan, step, artifact) or (waited and artifact.exists and artifact.damage() is None):
            return _ref(step, _whole(artifact, step.name), "attached" if waited else "reused")
        submitted = read_attempt(state) is not None
        return _ref(step, _make(plan, step, store, observer, stop, claim), "attached" if submitted else "made")


@dataclass
class _Attempt:
    number: int
    folder: Path


def _make(
    plan: Plan, step: PlannedStep, store: Store, observer: Observer, stop: threading.Event, claim: Claim
) -> Artifact:
    home, state = store.home(step.kind.name, step.key), store.state(step.key)
    if not step.force and (sealed := commits.finish_sealed(home)) is not None:
        _forget_job(state)
        return sealed
    attempt = _attempt(home, state)
    commits.discard_unsealed(home, but=attempt.number)
    work = home / "work"
    if step.force and not (state / RECORD).exists():
        delete(work)
    work.mkdir(exist_ok=True)
    started = time.time()
    log = StepLog(
        log_path(state, attempt.number),
        launched=isinstance(step.runtime, LaunchRuntime),
        conceal=plan.pipeline.secrets.conceal,
    )
    context = _context(plan, step, store, observer, stop, attempt, work, log)
    log.began(plan.run_id)
    try:
        returned = step.kind.run(context)
        if claim.lost:
            raise UserError("another run took this step over while this process seemed dead", key=step.name)
    except Stopped as stopped:
        log.ended(stopped)
        if not (state / RECORD).exists():  # else a submitted job goes on writing there
            commits.discard(home, attempt.number)
            commits.discard_home_if_empty(home)
        raise
    except BaseException as error:
        log.ended(error)
        _forget_job(state)
        commits.discard(home, attempt.number)
        commits.discard_home_if_empty(home)
        raise
    plain = plain_statistics(returned, step, attempt.folder)
    statistics = plan.pipeline.secrets.shown(plain, f"steps.{step.name}.statistics")
    commits.seal(attempt.folder, _manifest(plan, step, attempt, context, statistics, started), context.digests)
    artifact = commits.commit(home, attempt.number, replace=step.force)
    _forget_job(state)
    log.made(time.time() - started)
    return artifact


def _attempt(home: Path, state: Path) -> _Attempt:
    """The attempt that a submitted job is writing, else a fresh one."""
    number = read_attempt(state)
    if number is not None and (folder := home / "attempts" / str(number)).is_dir():
        return _Attempt(number, folder)
    _forget_job(state)
    return _Attempt(*commits.new_attempt(home))


def _forget_job(state: Path) -> None:
    """Clear what the launcher kept for finding the job again: the attempt has ended."""
    for path in [state / RECORD, state / "error.json", *state.glob("exit-*.json")]:
        path.unlink(missing_ok=True)


def _tidy(state: Path, home: Path, run_id: str) -> None:
    """Clear what a process left that died between its commit and its last line."""
    if known_dead(state) and (claim := Claim.acquire(state, run_id)) is not None:
        with claim:
            _forget_job(state)
            clear_drafts(home)


def _context(
    plan: Plan,
    step: PlannedStep,
    store: Store,
    observer: Observer,
    stop: threading.Event,
    attempt: _Attempt,
    work: Path,
    log: StepLog,
) -> StepContext[Any, Any]:

    def say(line: str) -> None:
        line = plan.pipeline.secrets.conceal(line)
        log.say(line)
        observer.on_message(step, line)

    inputs = {}
    for name, (origin, key) in step.needs.items():
        artifact = store.with_key(key)
        if artifact is None:
            raise UserError(f"the input {name} ({origin}, key {key[:12]}) is not in the store any more", key=step.name)
        made_by = store.step_names().get(key, origin) if origin.startswith("ref:") else origin
        inputs[name] = _whole(artifact, made_by)
    return StepContext(
        name=step.name,
        key=step.key,
        attempt=attempt.number,
        params=step.params,
        runtime=step.runtime,
        inputs=inputs,
        folder=attempt.folder,
        work=work,
        state=store.state(step.key),
        store=store,
        stop=stop,
        on_progress=lambda progress: observer.on_progress(step, progress),
        say=say,
        source_digest=step.payload.get("source"),
        anew=step.force,
    )


def _manifest(
    plan: Plan,
    step: PlannedStep,
    attempt: _Attempt,
    context: StepContext[Any, Any],
    statistics: Mapping[str, Any],
    started: float,
) -> dict[str, Any]:
    ended = time.time()
    ranks = getattr(step.runtime, "world_size", 1)
    gpus = getattr(step.runtime, "nodes", 1) * getattr(step.runtime, "gpus_per_node", 0)
    return {
        "format": 1,
        "step": step.name,
        "kind": step.kind.name,
        "kind_version": step.kind.version,
        "type": step.kind.output,
        "key": step.key,
        "identity": step.payload,
        "inputs": {name: {"from": origin, "key": key} for name, (origin, key) in step.needs.items()},
        "objects": sorted(context.objects),
        "attempt": attempt.number,
        "facts": dict(step.facts),
        "statistics": dict(statistics),
        "provenance": {
            **provenance(type(step.kind)),
            "run": plan.run_id,
            "runtime": plan.runtime_record(step),
            "started": _iso(started),
            "ended": _iso(ended),
            "seconds": round(ended - started, 3),
            "ranks": ranks,
            "gpu_hours": round(gpus * (ended - started) / 3600, 3),
        },
    }


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _ref(step: PlannedStep, artifact: Artifact, action: Literal["reused", "made", "attached"]) -> ArtifactRef:
    return ArtifactRef(
        step=step.name,
        kind=step.kind.name,
        type=step.kind.output,
        key=step.key,
        uri=artifact.uri,
        action=action,
    )
