"""How far a run of InternEvo was: its ``context.pt``, and ``schedulder.pt``, which some versions spell right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo_core.errors import CheckpointError
from evo_core.weights.pickles import read_settings

CONTEXT = "context.pt"
SCHEDULERS = ("schedulder.pt", "scheduler.pt")


@dataclass(frozen=True)
class Schedule:
    """The shape of a learning-rate schedule.

    Attributes:
        lr: after the warm-up.
        before_decay: updates before the cosine begins: those at a rate of zero, and the warm-up.
        total_steps: updates after which it ends.
        eta_min: the rate there.
    """

    lr: float
    before_decay: int
    total_steps: int
    eta_min: float


@dataclass(frozen=True)
class Progress:
    """Where a run of InternEvo was.

    Attributes:
        step: batches drawn, trained on or not.
        tokens: in them, over all ranks.
        skipped_updates: left out because gradients were inf or nan.
        updates: position in the schedules.
        schedule: of the learning rate.
    """

    step: int
    tokens: int
    skipped_updates: int
    updates: int
    schedule: Schedule


def read_progress(folder: Path) -> Progress:
    """Read how far the run was that wrote a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, or lacks what it should hold.
    """
    path = folder / CONTEXT
    context = _read(path, "step and tokens")
    step = _count(context, "batch_count", path) + 1  # it is the number of the last batch
    updates, schedule = _position(folder)
    # A scheduler that is one ahead is one that InternEvo has set so on resuming: a slip, which is not taken over.
    # Any other number is the scheduler's own: it was begun anew with the weights of an earlier run, say.
    made = _count(context, "step_count", path) if "step_count" in context else None
    return Progress(
        step=step,
        tokens=_count(context, "num_consumed_tokens", path),
        skipped_updates=_count(context, "inf_nan_skip_batches", path),
        updates=made if made is not None and updates == made + 1 else updates,
        schedule=schedule,
    )


def _position(folder: Path) -> tuple[int, Schedule]:
    """The updates that a scheduler has counted, and its shape.

    It is two: one counts up to the end of the warm-up and then stands still, and another counts from there.
    """
    path = next((folder / name for name in SCHEDULERS if (folder / name).exists()), folder / SCHEDULERS[0])
    outer = _read(path, "position in the schedules")
    inner = outer.get("after_scheduler_dict")
    if not isinstance(inner, Mapping):
        raise CheckpointError("is no scheduler of InternEvo: it has no after_scheduler_dict", file=path)
    before_decay = _count(outer, "warmup_epochs", path)
    decayed, warmed = _count(inner, "last_epoch", path), _count(outer, "last_epoch", path)
    lr = outer.get("base_lrs")
    schedule = Schedule(
        lr=_number(lr[0] if isinstance(lr, list) and lr else None, "base_lrs", path),
        before_decay=before_decay,
        total_steps=before_decay + _count(inner, "T_max", path),
        eta_min=_number(inner.get("eta_min"), "eta_min", path),
    )
    return (before_decay + decayed if outer.get("finished") else warmed), schedule


def _read(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        hint = 'write content: ["model"] to take the weights alone'
        raise CheckpointError(f"is missing, and with it {what}", file=path, hint=hint)
    return read_settings(path)


def _count(found: Mapping[str, Any], name: str, path: Path) -> int:
    value = found.get(name)
    if type(value) is not int or value < 0:
        raise CheckpointError(f"{value!r} is no count" if name in found else "is missing", file=path, key=name)
    return value


def _number(value: Any, name: str, path: Path) -> float:
    if type(value) not in (int, float):
        raise CheckpointError(f"{value!r} is no number", file=path, key=name)
    return float(value)
