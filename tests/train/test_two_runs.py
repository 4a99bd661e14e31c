"""Two live runs with one save folder: of one job the later goes on, of two jobs both do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.jobs import curve, losses, write_job
from tests.train.processes import Command
from tests.train.test_refused_writes import one_line
from tests.train.watched import Bucket, Disk, Watched

Start = Callable[..., Command]


@pytest.fixture(params=["on disk", pytest.param("in a store", marks=pytest.mark.s3)])
def saves(request: pytest.FixtureRequest, tmp_path: Path) -> Watched:
    if request.param == "on disk":
        return Disk(tmp_path / "ckpt")
    return Bucket(request.getfixturevalue("s3"))


class Gate:
    """A step before which a run waits until it is let through."""

    def __init__(self, folder: Path, step: int) -> None:
        self._step, self._there, self._open = step, folder / f"there-{step}", folder / f"open-{step}"

    def __call__(self, step: int) -> None:
        if step == self._step:
            self._there.touch()
            wait_until(self._open.exists)

    def wait(self) -> None:
        """Until the run has come to it."""
        wait_until(self._there.exists)

    def open(self) -> None:
        self._open.touch()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts runs of one process; what is left of them at the end is killed."""
    commands: list[Command] = []

    def starts(name: str, gate: Gate | None = None, **changes: Any) -> Command:
        (tmp_path / name).mkdir(exist_ok=True)
        arguments = ["--config", str(write_job(tmp_path / name, **changes)), "--folder", str(tmp_path / name / "run")]
        commands.append(Command(arguments, tmp_path / f"{name}.log", each_step=gate))
        return commands[-1]

    yield starts
    for command in commands:
        command.kill()
        command.wait()


@pytest.mark.parametrize("behind", [False, True], ids=["in the step", "in the background"])
def test_one_that_is_overtaken_ends_at_its_next_save(
    tmp_path: Path, saves: Watched, start: Start, behind: bool
) -> None:
    changes = {"ckpt__save_ckpt_folder": saves.location, "ckpt__async_upload": behind}
    earlier, later = Gate(tmp_path, 5), Gate(tmp_path, 7)
    first = start("first", earlier, **changes)
    earlier.wait()
    second = start("second", later, **changes)
    later.wait()
    wait_until(lambda: "6" in saves.complete())
    earlier.open()
    assert first.wait() == [2]
    assert f"{saves.location}: ckpt.save_ckpt_folder: no checkpoint can be saved: " in one_line(first.log)
    later.open()
    assert second.wait() == [0]
    assert f"resuming from {saves.location}/3\n" in second.log.read_text()
    assert saves.begun() == saves.complete() == {"3", "6", "8"}
    saves.check()
    one, other = losses(tmp_path / "first" / "run")[3:], losses(tmp_path / "second" / "run")
    assert len(other) == 5 and other[: len(one)] == one


def test_two_jobs_share_a_folder(tmp_path: Path, start: Start) -> None:
    saves = Disk(tmp_path / "ckpt")
    changes = {"ckpt__save_ckpt_folder": saves.location, "ckpt__keep": 2}
    gate = Gate(tmp_path, 5)
    first = start("first", gate, job_name="first", **changes)
    gate.wait()
    assert start("second", job_name="second", seed=5, **changes, ckpt__auto_resume=False).wait() == [0]
    gate.open()
    assert first.wait() == [0]
    assert saves.begun() == saves.complete() == {"6", "6-2", "8", "8-2"}
    saves.check()
    for name, seed, newest in (("first", 1024, "8-2"), ("second", 5, "8")):
        again = start(name, job_name=name, seed=seed, **changes, data__total_steps=9)
        assert again.wait() == [0]
        assert f"resuming from {saves.location}/{newest}\n" in again.log.read_text()
        assert [record["step"] for record in curve(tmp_path / name / "run")] == list(range(9))
