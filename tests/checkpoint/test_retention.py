"""Which folders a run removes after a save: laws that hold for whatever lies in the save folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.checkpoint.folder import Found
from evo_core.checkpoint.retention import outdated
from evo_core.checkpoint.run import Run

NAMES = [(step, attempt, snapshot) for step in range(9) for attempt in (1, 2) for snapshot in (False, True)]
KEEP = st.none() | st.integers(1, 4)


def folder(step: int, attempt: int = 1, *, snapshot: bool = False, complete: bool = True, run: Run | None) -> Found:
    return Found(Path(f"{step}-{attempt}"), step, attempt, complete, snapshot, run)


@st.composite
def folders(draw: st.DrawFn) -> tuple[list[Found], Run]:
    """Folders of this run, of another and of nobody that is known, saved in any order; some were found damaged."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    times = draw(st.permutations(range(len(names))))
    found = []
    for (step, attempt, snapshot), time in zip(names, times, strict=True):
        owner = draw(st.sampled_from(["mine", "mine", "mine", "another", None]))
        run = None if owner is None else Run(owner, saved=float(time))
        found.append(folder(step, attempt, snapshot=snapshot, complete=draw(st.booleans()), run=run))
    damaged = draw(st.sets(st.sampled_from([each.name for each in found]))) if found else ()
    return found, Run("mine", passed_over=tuple(sorted(damaged)))


def own(found: Sequence[Found], run: Run) -> list[Found]:
    return [each for each in found if each.run and each.run.id == "mine" and each.name not in run.passed_over]


@given(folders(), KEEP, KEEP)
def test_laws(case: tuple[list[Found], Run], keep: int | None, keep_every: int | None) -> None:
    found, run = case
    gone = outdated(found, run, keep, keep_every)
    left = [each for each in found if each not in gone]
    mine = own(found, run)
    complete = [each for each in mine if each.complete]
    assert all(each in mine for each in gone)
    if not complete:
        assert gone == []
        return
    last = max(complete, key=lambda each: each.saved)
    older = [each for each in own(left, run) if each.age < last.age]
    assert all(each.age < last.age for each in gone)
    assert max(complete, key=lambda each: each.age) in left  # what a restart goes on from
    assert all(each.complete for each in older)
    assert len([each for each in older if each.snapshot]) <= 2
    counted = [each for each in older if not each.snapshot and not (keep_every and each.step % keep_every == 0)]
    if keep is None:
        assert all(each.snapshot for each in gone if each.complete)
    else:
        assert len(counted) <= keep
    assert outdated(left, run, keep, keep_every) == []


@given(folders(), KEEP, KEEP, st.integers(1, 4))
def test_what_stays_for_ever_stays_whatever_keep_becomes(
    case: tuple[list[Found], Run], keep: int | None, later: int | None, keep_every: int
) -> None:
    found, run = case
    left = [each for each in found if each not in outdated(found, run, keep, keep_every)]
    left = [each for each in left if each not in outdated(left, run, later, keep_every)]
    kept = [each for each in found if each.complete and not each.snapshot and each.step % keep_every == 0]
    assert all(each in left for each in kept)


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [(2, None, [70, 80]), (2, 30, [30, 60, 70, 80]), (1, 40, [40, 80]), (None, 40, list(range(10, 90, 10)))],
)
def test_the_newest_and_each_mth(keep: int | None, keep_every: int | None, left: list[int]) -> None:
    found = [folder(step, run=Run("mine", saved=float(step))) for step in range(10, 90, 10)]
    gone = outdated(found, Run("mine"), keep, keep_every)
    assert [each.step for each in found if each not in gone] == left


def test_a_snapshot_is_never_kept_for_ever() -> None:
    found = [folder(step, snapshot=True, run=Run("mine", saved=float(step))) for step in (2, 4, 6, 8)]
    assert [each.step for each in outdated(found, Run("mine"), 1, 2)] == [2, 4]


def test_what_somebody_put_there_does_not_count() -> None:
    saved = {4: 1.0, 9: 2.0, 5: 3.0}  # the run fell back to 4, and 9 was put back since
    found = [folder(step, run=Run("mine", saved=time)) for step, time in saved.items()]
    assert outdated(found, Run("mine"), 2) == []


def test_what_a_later_session_of_the_run_saves_stays() -> None:
    here, later = Run("mine", saved=9.0, session="1000000000.000000 a"), Run("mine", session="1000000001.000000 b")
    found = [folder(9, run=here), folder(6, attempt=2, complete=False, run=later), folder(6, run=here)]
    assert [(each.step, each.attempt) for each in outdated(found, here, 1)] == [(6, 1)]


def test_a_later_session_saved_later_whatever_its_clock_says() -> None:
    before, now = (Run("a", session=began) for began in ("1", "2"))
    saved = [(1, before, 9e9), (2, before, 9e9 + 1), (3, now, 10.0), (4, now, 20.0)]
    found = [folder(step, run=replace(run, saved=at)) for step, run, at in saved]
    assert [each.step for each in outdated(found, now, 1)] == [1, 2, 3]
