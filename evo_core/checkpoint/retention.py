"""Which checkpoints of a run are too old to keep: a decision about names and times, which touches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evo_core.checkpoint.folder import Found
    from evo_core.checkpoint.run import Run

SNAPSHOTS_KEPT = 2


def outdated(found: Sequence[Found], run: Run, keep: int | None, keep_every: int | None = None) -> list[Found]:
    """What a run removes after a save.

    Of its complete checkpoints all but the `keep` that it saved last, of its snapshots all but the last two, and its
    incomplete folders, for nothing will ever complete them. All this only among what is of an earlier step than the
    last that was saved: what is of a later one was put there by somebody. What another run saved stays, what this one
    found damaged, and what a session saves that has gone on with the run since.

    Args:
        found: all folders below the save folder.
        keep: None keeps all checkpoints.
        keep_every: checkpoints whose step is a multiple of it stay for ever; None: none does.
    """
    own = [each for each in found if each.run is not None and each.run.id == run.id]
    own = [each for each in own if each.name not in run.passed_over and not _is_overtaken(run, each)]
    complete = [each for each in own if each.complete]
    if not complete:
        return []
    last = max(complete, key=_order)
    checkpoints = [each for each in complete if not each.snapshot and each.age <= last.age]
    snapshots = [each for each in complete if each.snapshot and each.age <= last.age]
    kept = [*_newest(checkpoints, keep), *_newest(snapshots, SNAPSHOTS_KEPT)]
    if keep_every is not None:
        kept += [each for each in checkpoints if each.step % keep_every == 0]
    return [each for each in own if each.age < last.age and each not in kept]


def _is_overtaken(run: Run, found: Found) -> bool:
    return found.run is not None and bool(run.session) and found.run.session > run.session


def _newest(found: Sequence[Found], count: int | None) -> Sequence[Found]:
    """Those that were saved last."""
    return sorted(found, key=_order, reverse=True)[:count]


def _order(found: Found) -> tuple[object, ...]:
    """Sorts a run's checkpoints by when they were saved: by its sessions first, for clocks of their machines differ."""
    return found.run.session if found.run is not None else "", found.saved
