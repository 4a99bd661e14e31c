"""All checks side by side, each with its time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flows.doctor import git, machine, packages, prefect, s3, slurm, store, torch_and_gpus
from flows.doctor.finding import Asked, Check, Finding
from flows.doctor.shown import without_secrets

CHECKS = (
    Check("packages", packages.look),
    Check("torch", torch_and_gpus.look, torch_and_gpus.SECONDS),
    Check("machine", machine.look),
    Check("store", store.look),
    Check("git", git.look, 25.0),
    Check("slurm", slurm.look, 45.0),
    Check("s3", s3.look, 40.0),
    Check("prefect", prefect.look, 40.0),
)


def examine(asked: Asked, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """What the checks find, in their order; one that is not through in its time, or fails itself, is a finding."""
    began = time.monotonic()
    running = [(check, _start(check, asked)) for check in checks]
    found = [finding for check, told in running for finding in _collected(check, told, began)]
    return [_safe(finding) for finding in found]


def _safe(finding: Finding) -> Finding:
    hint = None if finding.hint is None else without_secrets(finding.hint)
    return replace(finding, message=without_secrets(finding.message), hint=hint)


def _start(check: Check, asked: Asked) -> queue.SimpleQueue[Finding | None]:
    """Begin a check in a thread that nobody waits for; None in its queue is the end."""
    told: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for finding in check.look(asked):
                told.put(finding)
        except Exception as error:
            told.put(Finding(check.subject, "problem", f"the check itself failed: {type(error).__name__}: {error}"))
        told.put(None)

    threading.Thread(target=work, name=f"doctor {check.subject}", daemon=True).start()
    return told


def _collected(check: Check, told: queue.SimpleQueue[Finding | None], began: float) -> Iterator[Finding]:
    while True:
        try:
            finding = told.get(timeout=max(0.0, began + check.seconds - time.monotonic()))
        except queue.Empty:
            hint = "something that it looks at hangs: a file system, a server, a program"
            yield Finding(check.subject, "problem", f"not through after {check.seconds:g} s", hint)
            return
        if finding is None:
            return
        yield finding
