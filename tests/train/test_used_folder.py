"""Several runs in one save folder: each goes on from its own checkpoints, and none removes another's."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from evo_core.checkpoint import newest_complete, saving
from evo_core.checkpoint.folder import create, find, newest_run, remove_old
from evo_core.checkpoint.run import Run
from evo_core.errors import CheckpointError
from tests.ranks import run_on_ranks
from tests.train.jobs import before_each_step, curve, job, run
from tests.train.test_start import flip_bytes

SCHEDULE = {"total_steps": 12}


def saved(tmp_path: Path) -> list[str]:
    return sorted(str(found.path.relative_to(tmp_path / "ckpt")) for found in find(tmp_path / "ckpt"))


def begin(tmp_path: Path, name: str, steps: int, **changes: Any) -> Any:
    """A run that does not resume, into the folder that all use."""
    cfg = job(tmp_path, ckpt__auto_resume=False, data__total_steps=steps, lr_scheduler=SCHEDULE, **changes)
    return run(cfg, tmp_path / name)


def restart(tmp_path: Path, name: str, steps: int, **changes: Any) -> Any:
    return run(job(tmp_path, data__total_steps=steps, lr_scheduler=SCHEDULE, **changes), tmp_path / name)


@pytest.mark.parametrize("older", ["with a name", "of an older version"])
def test_a_second_run_keeps_its_own_and_the_olders_and_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], older: str
) -> None:
    begin(tmp_path, "old", 8, ckpt__checkpoint_every=4)
    if older == "of an older version":
        for step in ("4", "8"):
            forget_the_run(tmp_path / "ckpt" / step)
    capsys.readouterr()
    result = begin(tmp_path, "new", 2, ckpt__checkpoint_every=1, ckpt__keep=1, seed=5)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'ckpt'} is in use: 2 checkpoints of other runs lie there" in said
    assert result.checkpoint == tmp_path / "ckpt" / "2"
    assert saved(tmp_path) == ["2", "4", "8"]
    assert newest_complete(tmp_path / "ckpt") == tmp_path / "ckpt" / "2"  # what is evaluated or continued, too

    result = restart(tmp_path, "new", 9, ckpt__checkpoint_every=4, ckpt__keep=1, seed=5)
    assert f"resuming from {tmp_path / 'ckpt' / '2'}" in capsys.readouterr().out
    assert saved(tmp_path) == ["4", "8", "9"]
    assert [record["step"] for record in curve(tmp_path / "new")] == list(range(9))


def test_a_run_that_ended_in_its_first_save_begins_again_as_the_same_run(tmp_path: Path) -> None:
    def body() -> None:
        def dies(*args: Any) -> None:
            raise KeyboardInterrupt  # which clears nothing up, as a kill

        saving._complete = dies
        with pytest.raises(KeyboardInterrupt):
            restart(tmp_path, "run", 8)

    run_on_ranks(body, 1)
    assert saved(tmp_path) == ["3"] and newest_complete(tmp_path / "ckpt") is None
    shutil.copytree(tmp_path / "ckpt" / "3", tmp_path / "ckpt" / "2")
    record = tmp_path / "ckpt" / "2" / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "id": "another's", "job": "another"}))
    restart(tmp_path, "run", 7, ckpt__keep=9)
    assert saved(tmp_path) == ["2", "3-2", "6", "7"]


def forget_the_run(checkpoint: Path) -> None:
    """A checkpoint as versions wrote it that did not name its run."""
    (checkpoint / "run.json").unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["files"]["run.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_checkpoints_of_an_older_version_are_gone_on_with_as_one_run(tmp_path: Path) -> None:
    begin(tmp_path, "run", 6)
    for step in ("3", "6"):
        forget_the_run(tmp_path / "ckpt" / step)
    restart(tmp_path, "run", 8, ckpt__keep=2)
    assert saved(tmp_path) == ["6", "8"]


def test_nothing_is_said_of_a_new_folder_or_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, "run", 1)
    restart(tmp_path, "run", 2)
    assert "in use" not in capsys.readouterr().out


def test_two_jobs_that_take_turns_in_one_folder_resume_each_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, "a", 6, job_name="a")
    begin(tmp_path, "b", 2, job_name="b")
    for steps, name, newest in ((7, "a", "6"), (3, "b", "2"), (8, "a", "7"), (4, "b", "3")):
        restart(tmp_path, name, steps, job_name=name, ckpt__keep=1)
        assert f"resuming from {tmp_path / 'ckpt' / newest}\n" in capsys.readouterr().out
    assert saved(tmp_path) == ["4", "8"]


def test_snapshots_of_another_run_are_left_alone(tmp_path: Path) -> None:
    begin(tmp_path, "old", 8, ckpt__checkpoint_every=8, ckpt__oss_snapshot_freq=2)
    begin(tmp_path, "new", 7, ckpt__checkpoint_every=7, ckpt__oss_snapshot_freq=2)
    assert saved(tmp_path) == ["7", "8", *(f"snapshot/{name}" for name in ("4", "4-2", "6", "6-2"))]


def test_unfinished_folders_are_removed_by_their_own_run_alone(tmp_path: Path) -> None:
    mine, others = Run.new(), Run.new()
    for owner in (mine, others):
        create(tmp_path, 1, owner)  # is never completed, or is in the making
    done = create(tmp_path, 2, mine)
    (done / "manifest.json").write_text("{}")
    remove_old(tmp_path, 3, mine)
    assert [found.path.name for found in find(tmp_path)] == ["2", "1-2"]


def test_what_was_put_back_by_hand_does_not_cost_what_was_just_saved(tmp_path: Path) -> None:
    begin(tmp_path, "run", 6, ckpt__checkpoint_every=2)
    shutil.move(tmp_path / "ckpt" / "6", tmp_path / "aside")
    restart(tmp_path, "run", 5, ckpt__checkpoint_every=100)
    shutil.move(tmp_path / "aside", tmp_path / "ckpt" / "6")
    mine = Run.read(tmp_path / "ckpt" / "5")
    assert mine is not None
    remove_old(tmp_path / "ckpt", 1, mine)
    assert saved(tmp_path) == ["5", "6"]


def test_a_run_falls_back_and_loses_neither_the_damaged_one_nor_the_new(tmp_path: Path) -> None:
    """The damaged one is newer than what is saved after falling back, and stays through later restarts too."""
    begin(tmp_path, "run", 8, ckpt__checkpoint_every=4)
    flip_bytes(tmp_path / "ckpt" / "8" / "model" / "__0_0.distcp")
    result = restart(tmp_path, "run", 6, ckpt__keep=1)
    assert result.checkpoint == tmp_path / "ckpt" / "6"
    assert saved(tmp_path) == ["6", "8"]
    for steps in (9, 11):
        restart(tmp_path, "run", steps, ckpt__keep=1, ckpt__checkpoint_every=100)
    assert saved(tmp_path) == ["11", "8"]


def test_a_launcher_that_starts_a_run_again_resumes_it_without_auto_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, "old", 8)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    begin(tmp_path, "new", 2, seed=5)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    capsys.readouterr()
    begin(tmp_path, "new", 3, seed=5)
    assert f"started again: resuming from {tmp_path / 'ckpt' / '2'}" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_JOB_ID", "18")  # another job, requeued before it saved: it has nothing of its own
    begin(tmp_path, "other", 1, seed=5)
    assert "is in use: 5 checkpoints" in capsys.readouterr().out


def test_the_run_that_saved_last_is_the_newest_whatever_its_steps(tmp_path: Path) -> None:
    for step, owner in ((9, Run("1", "a")), (5, Run("2", "b"))):
        (create(tmp_path, step, owner) / "manifest.json").write_text("{}")
        time.sleep(0.002)
    found = find(tmp_path)
    assert [newest_run(found, job=job).job for job in (None, "a", "b", "c")] == ["b", "a", "b", "b"]
    assert newest_run(found, launch=["x"]) is None
    assert newest_run([]) is None


def test_two_runs_at_once_in_one_folder(tmp_path: Path) -> None:
    """Both keep one checkpoint, save at the same steps and lose nothing to the other."""
    gate = tmp_path / "gate"
    gate.mkdir()

    def body() -> str:
        number = dist.get_rank()
        dist.destroy_process_group()

        def meet(step: int) -> None:
            (gate / f"{step}-{number}").touch()
            deadline = time.monotonic() + 20
            while not (gate / f"{step}-{1 - number}").exists() and time.monotonic() < deadline:
                time.sleep(0.002)

        before_each_step(meet)
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        result = begin(tmp_path, f"run{number}", 6, seed=number, ckpt__checkpoint_every=1, ckpt__keep=2)
        return str(result.checkpoint)

    job(tmp_path)  # writes the data
    results = run_on_ranks(body, 2)
    assert len(set(results)) == 2
    owners: dict[str, list[int]] = {}
    for found in find(tmp_path / "ckpt"):
        assert found.complete
        assert found.run is not None
        owners.setdefault(found.run.id, []).append(found.step)
    assert sorted(owners.values()) == [[6, 5], [6, 5]]


@pytest.mark.parametrize("harm", ["manifest", "nothing named", "unreadable"])
def test_a_run_whose_checkpoints_are_all_damaged_stops(tmp_path: Path, harm: str) -> None:
    """Also where an older run's are whole: those are not its own."""
    begin(tmp_path, "old", 2, job_name="old")
    begin(tmp_path, "new", 6, job_name="new")
    for step in ("3", "6"):
        checkpoint = tmp_path / "ckpt" / step
        if harm == "manifest":
            (checkpoint / "manifest.json").write_text("[" * 100_000)
        elif harm == "nothing named":
            manifest = json.loads((checkpoint / "manifest.json").read_text())
            (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))
        else:
            (checkpoint / "model" / ".metadata").unlink()
            (checkpoint / "model" / ".metadata").mkdir()
    before = sorted(str(path) for path in (tmp_path / "ckpt").rglob("*"))
    with pytest.raises(CheckpointError, match=r"no checkpoint of the run is whole, of 2; the newest: .*/6.*: "):
        restart(tmp_path, "new", 7, job_name="new")
    assert sorted(str(path) for path in (tmp_path / "ckpt").rglob("*")) == before


def test_one_that_does_not_even_say_whose_it_is_is_passed_over_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, "run", 6)
    (tmp_path / "ckpt" / "6" / "run.json").write_text("{")
    restart(tmp_path, "run", 8, ckpt__keep=1)
    said = capsys.readouterr().out
    assert "run.json has 1 bytes instead of" in said
    assert f"resuming from {tmp_path / 'ckpt' / '3'}" in said
    assert saved(tmp_path) == ["6", "8"]
