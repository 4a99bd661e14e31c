"""Which log is whose: the files that a step's newest attempt has left, while it is made and after."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo_core.config.suggest import suggest
from evo_core.errors import UserError
from tasks.launch import launcher_for
from tasks.launch.job_outcome import JobOutcome
from tasks.launch.launcher import LaunchRuntime
from tasks.launch.record import exit_marker, read_record
from tasks.store import Store
from tasks.store.claim import holder

SHORTEST_KEY = 4
"""Digits of a key that name it."""

SLURM_EVERY = 15.0
"""Seconds between two questions about a job that nobody follows."""

_LOG = re.compile(r"log-(\d+)(?:\D.*)?\.txt")


@dataclass(frozen=True)
class LoggedStep:
    """A step of a run, whose log is asked for. `run` is empty where only a key was named."""

    name: str
    key: str
    run: str = ""


def find_steps(store: Store, text: str, run: str | None = None) -> tuple[list[LoggedStep], Mapping[str, Any]]:
    """The steps that a name, a sweep's name or the start of a key means, in the newest run that has it, and that run.

    Raises:
        UserError: no run has such a step, or there is no such run.
    """
    records = [_chosen(store, run)] if run is not None else store.runs()
    for record in reversed(records):
        named = [s for s in record["steps"] if text in (s["step"], s.get("sweep"))]
        named = named or [s for s in record["steps"] if len(text) >= SHORTEST_KEY and s["key"].startswith(text)]
        if named:
            return [LoggedStep(s["step"], s["key"], record["run"]) for s in named], record
    if run is None and (artifacts := store.find(text)):
        return [LoggedStep(artifacts[-1].manifest["step"], artifacts[-1].key)], {}
    names = {name for record in records for step in record["steps"] for name in (step["step"], step.get("sweep"))}
    where = f"run {run} has no step" if run is not None else f"no run of {store.root} has a step"
    known = sorted(filter(None, names))
    hint = f"steps: {', '.join(known[:20])}" if known else "--root names another store"
    raise UserError(f"{where} {text!r}{suggest(text, known)}", key="STEP", hint=hint)


def _chosen(store: Store, run: str) -> dict[str, Any]:
    records = store.runs()
    found = [r for r in records if r["run"] == run] or [r for r in records if r["run"].startswith(run)]
    if len(found) == 1:
        return found[0]
    names = [record["run"] for record in (found or records)]
    what = f"several runs begin with {run!r}" if found else f"there is no run {run!r}{suggest(run, names)}"
    raise UserError(
        what, key="--run", hint=f"runs: {', '.join(names[-10:])}" if names else "--root names another store"
    )


def log_files(store: Store, key: str) -> dict[str, Path]:
    """The logs of the newest attempt at a key by name: one, or one for each task of an array."""
    state = store.state(key)
    found: dict[int, list[Path]] = {}
    for path in sorted(state.glob("**/log-*.txt")):
        if match := _LOG.fullmatch(path.name):
            found.setdefault(int(match[1]), []).append(path)
    artifact = store.with_key(key)
    committed = 0
    if artifact is not None:
        try:
            committed = artifact.manifest["attempt"]
        except UserError:
            artifact = None  # it is damaged: what lies in the state folder may say why
    newest = max(found, default=0)
    if artifact is not None and (newest < committed or not found) and (artifact.path / "log.txt").is_file():
        return {"log.txt": artifact.path / "log.txt"}
    return {path.relative_to(state).as_posix(): path for path in found.get(newest, [])}


class Making:
    """Whether something may still be added to the logs of steps.

    A process that works on a key, and the word that a job leaves at its end, are seen at each look; Slurm is asked only
    where nobody follows the job, and no more often than a run would ask it.
    """

    def __init__(self, store: Store, steps: Sequence[LoggedStep], record: Mapping[str, Any]) -> None:
        self._store, self._keys, self._record = store, [step.key for step in steps], record
        self._told: dict[str, bool] = {}
        self._ask_at: dict[str, float] = {}

    def __call__(self) -> bool:
        """Look once. A step that has not begun may still come while its run makes another one."""
        if any(self._key(key) for key in self._keys):
            return True
        return any(self._store.with_key(key) is None for key in self._keys) and self._run_goes_on()

    def _key(self, key: str) -> bool:
        state = self._store.state(key)
        if holder(state) is not None:
            return True
        record = read_record(state)
        if record is None or JobOutcome(0).by_marker(exit_marker(state, record)) is not None:
            return False
        if time.monotonic() >= self._ask_at.get(key, 0.0):
            self._told[key] = launcher_for(LaunchRuntime(cluster=record.cluster)).alive(state)
            self._ask_at[key] = time.monotonic() + SLURM_EVERY
        return self._told[key]

    def _run_goes_on(self) -> bool:
        held = (holder(self._store.state(step["key"])) for step in self._record.get("steps", ()))
        return any(one is not None and one["run"] == self._record["run"] for one in held)
