"""When a run saves and ends: the table of decisions, and runs that are told to."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch.distributed as dist

from evo_core.checkpoint import newest_complete
from evo_core.train.checkpointing import Asked, Cadence, Decision
from tests.ranks import run_on_ranks
from tests.train.jobs import before_each_step, curve, job, run

SIGNAL = Asked(stop=True)


@pytest.mark.parametrize(
    ("done", "asked", "save", "end"),
    [
        (1, Asked(), None, None),
        (4, Asked(), "checkpoint", None),
        (2, Asked(), "snapshot", None),
        (8, Asked(), "checkpoint", None),
        (10, Asked(), "checkpoint", None),
        (3, SIGNAL, "checkpoint", "signal"),
        (2, SIGNAL, "checkpoint", "signal"),
        (10, SIGNAL, "checkpoint", "signal"),
        (3, Asked(stop_file=5), None, None),
        (5, Asked(stop_file=5), "checkpoint", "stop file"),
        (7, Asked(stop_file=5), "checkpoint", "stop file"),
        (3, Asked(stop_file=-5), None, None),
        (5, Asked(stop_file=-5), "checkpoint", None),
        (7, Asked(stop_file=-5), None, None),
        (5, Asked(stop=True, stop_file=5), "checkpoint", "signal"),
    ],
    ids=[
        "nothing is due",
        "a checkpoint is",
        "a snapshot is",
        "both are: one checkpoint",
        "the last step",
        "a signal",
        "a signal where a snapshot is due",
        "a signal at the last step",
        "the stop file names a later step",
        "this one",
        "an earlier one",
        "a save at a later step",
        "at this one",
        "at an earlier one",
        "a signal and the stop file",
    ],
)
def test_decisions(done: int, asked: Asked, save: str | None, end: str | None) -> None:
    """A checkpoint every 4 steps, a snapshot every 2, of 10 steps; where nothing is saved, ends are the same."""
    assert Cadence(4, 2, 10).decide(done, asked) == Decision(save, end)
    assert Cadence(4, 2, 10, saves=False).decide(done, asked) == Decision(None, end)


@pytest.mark.parametrize("snapshot_every", [0, 1, float("inf")])
def test_a_snapshot_at_every_step_or_never_is_none(snapshot_every: float) -> None:
    cadence = Cadence(float("inf"), snapshot_every, 10)
    assert [cadence.decide(done, Asked()).save for done in range(1, 11)] == [None] * 9 + ["checkpoint"]


def test_a_signal_to_one_rank_stops_all_after_the_step(tmp_path: Path) -> None:
    def body() -> tuple[bool, int]:
        def signal_one(step: int) -> None:
            if step == 4 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        before_each_step(signal_one)
        result = run(job(tmp_path), tmp_path / "run")
        return result.stopped, result.step

    assert run_on_ranks(body, 2) == [(True, 5)] * 2
    assert newest_complete(tmp_path / "ckpt") == tmp_path / "ckpt" / "5"
    assert run(job(tmp_path), tmp_path / "run").step == 8
    assert len(curve(tmp_path / "run")) == 8


@pytest.mark.parametrize(
    ("number", "step", "saved"),
    [
        (5, 5, ["5"]),
        (1, 3, ["3"]),
        (-5, 8, ["5", "8"]),
        (0, 8, ["8"]),
        ("never", 8, ["8"]),
        ("9" * 400, 8, ["8"]),
        ("-" + "9" * 400, 8, ["8"]),
        ("9" * 5000, 8, ["8"]),
    ],
    ids=["ends", "ends now when late", "saves and goes on", "nothing", "no number", "huge", "huge below 0", "absurd"],
)
def test_the_stop_file(tmp_path: Path, number: int | str, step: int, saved: list[str]) -> None:
    path = tmp_path / "control" / "stop"
    cfg = job(tmp_path, ckpt__stop_file_path=str(path), ckpt__checkpoint_every=100)

    def body() -> tuple[int, bool]:
        def write(at: int) -> None:
            if at == 2 and dist.get_rank() == 0:
                assert path.read_text() == "0\n"  # the run has made it
                path.write_text(f"{number}\n")

        before_each_step(write)
        result = run(cfg, tmp_path / "run")
        return result.step, result.stopped

    assert run_on_ranks(body, 2) == [(step, False)] * 2
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == saved


def test_snapshots_are_folders_of_their_own_and_two_are_kept(tmp_path: Path) -> None:
    cfg = job(tmp_path, data__total_steps=8, ckpt__checkpoint_every=4, ckpt__oss_snapshot_freq=2)
    run(cfg, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["4", "8", "snapshot"]
    assert sorted(p.name for p in (tmp_path / "ckpt" / "snapshot").iterdir()) == ["2", "6"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run(job(tmp_path, ckpt__checkpoint_every=1, ckpt__keep=2), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["7", "8"]


def test_each_mth_stays_for_ever(tmp_path: Path) -> None:
    often = {"ckpt__checkpoint_every": 1, "ckpt__keep_every": 3}
    for steps, keep, left in ((8, 1, ["3", "6", "8"]), (10, 2, ["10", "3", "6", "9"])):
        run(job(tmp_path, data__total_steps=steps, ckpt__keep=keep, **often), tmp_path / "run")
        assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == left


def test_nothing_is_saved_where_saving_is_off(tmp_path: Path) -> None:
    result = run(job(tmp_path, ckpt__enable_save_ckpt=False), tmp_path / "run")
    assert result.checkpoint is None
    assert not (tmp_path / "ckpt").exists()
