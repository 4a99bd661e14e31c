"""kill -9 of a run, or of the server of its store, at random moments of its saves, and what must be true after each."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.s3_server import S3Server
from tests.train.jobs import curve, losses, write_job
from tests.train.processes import Command, Hook
from tests.train.watched import Watched, newest

_RANKS = 2
_EVERY = 2
"""Steps between two saves."""

_PATIENCE = 120.0
"""Seconds for a run that comes to its end, or to its next save."""


@dataclass
class Tally:
    """What kills met.

    Attributes:
        kills: so many.
        before_the_end: those that met a save before it was complete.
        lost: those of a server after which the run ended with an error.
    """

    kills: int = 0
    before_the_end: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return f"{self.kills} kills, {self.before_the_end} of them before a save was complete; {self.lost} runs lost"


class Moments:
    """Random moments of something whose length is learned: about three of four are before its end.

    ``EVO_KILL_SEED`` draws again what was drawn when that number was printed.
    """

    def __init__(self) -> None:
        seed = os.environ.get("EVO_KILL_SEED") or str(random.randrange(1 << 32))
        print(f"EVO_KILL_SEED={seed}")
        self._random, self._reach = random.Random(seed), 0.3

    def wait(self) -> None:
        """Pass a random part of the time."""
        time.sleep(self._random.uniform(0, self._reach))

    def learn(self, *, before_the_end: bool) -> None:
        """Take in how the last one fell."""
        self._reach *= 1.2 if before_the_end else 0.6

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def one_of(self, things: list[int]) -> int:
        return self._random.choice(things)


class Job:
    """A run on two ranks in float32, to be started again and again. It keeps its last two checkpoints.

    Args:
        folder: for the job's file, its data, logs and curve.
        saves: where it saves.
        steps: in all.
        changes: of the job.
    """

    def __init__(self, folder: Path, saves: Watched, *, steps: int, **changes: Any) -> None:
        self.saves = saves
        self._folder, self._steps = folder, steps
        self._changes = {"model__dtype": "torch.float32", "data__total_steps": steps, "ckpt__keep": 2, **changes}

    def undisturbed(self) -> list[float]:
        """The losses of the run that nobody disturbs and that saves nothing."""
        write_job(self._folder, **self._changes, ckpt__enable_save_ckpt=False)
        command = self._command("undisturbed")
        assert command.wait(_PATIENCE) == [0] * _RANKS, command.log.read_text()
        return losses(self._folder / "undisturbed")

    def start(self, *, every: int = _EVERY, each_step: Hook | None = None, **changes: Any) -> Command:
        """Start it, or start it again where it was."""
        place = {"ckpt__save_ckpt_folder": self.saves.location, "ckpt__checkpoint_every": every}
        write_job(self._folder, **self._changes, **place, **changes)
        return self._command("run", each_step)

    def finish(self, expected: list[float]) -> None:
        """Run it to its end and compare its whole curve; nothing incomplete is left."""
        command = self.start(every=self._steps)
        assert command.wait(_PATIENCE) == [0] * _RANKS, command.log.read_text()
        assert losses(self._folder / "run") == expected
        assert [record["step"] for record in curve(self._folder / "run")] == list(range(self._steps))
        assert not (left := self.saves.begun() - self.saves.complete()), left
        self.saves.check()

    def wait_for_a_save(self, command: Command, before: set[str]) -> str:
        """Until a checkpoint folder appears beside those that there were; its name."""
        deadline = time.monotonic() + _PATIENCE
        while not (begun := self.saves.begun() - before):
            assert not command.ended() and time.monotonic() < deadline, command.log.read_text()
            time.sleep(0.001)
        return min(begun)

    def _command(self, name: str, each_step: Hook | None = None) -> Command:
        arguments = ["--config", str(self._folder / "job.yaml"), "--folder", str(self._folder / name)]
        log = self._folder / f"{name}.log"
        log.unlink(missing_ok=True)
        return Command(arguments, log, ranks=_RANKS, each_step=each_step)


def kill_in_saves(job: Job, times: int, *, behind: Sequence[bool]) -> Tally:
    """Start the job and kill it in a save, `times` times: all its ranks, or one that the others end after.

    After each kill every complete checkpoint is whole, and the next start goes on from the newest.

    Args:
        behind: by turns, whether the job saves in the background.
    """
    moments, tally, goes_on_from = Moments(), Tally(), None
    for number in range(times):
        before, command = job.saves.begun(), job.start(ckpt__async_upload=behind[number % len(behind)])
        try:
            job.wait_for_a_save(command, before)
            moments.wait()
            command.kill([moments.one_of(command.pids)] if moments.chance(0.3) else None)
            command.wait(_PATIENCE)
        finally:
            command.kill()
        said = command.log.read_text()
        assert goes_on_from is None or f"resuming from {job.saves.location}/{goes_on_from}\n" in said, said
        left, complete = job.saves.begun(), job.saves.complete()
        tally.kills += 1
        tally.before_the_end += (cut := bool(left - complete - before))
        moments.learn(before_the_end=cut)
        goes_on_from = newest(complete)
        job.saves.check()
    print(tally)
    return tally


def kill_server_in_saves(jobs: Sequence[Job], server: S3Server, times: int, *, stays_away: float = 0.2) -> Tally:
    """Kill the server on which several jobs save, at the same time, in a save of one of them or while it loads, `times`
    times. It comes back at once, or when all have given up.

    A run goes on after the pause, or ends with one error. After each kill every complete checkpoint is whole.

    Args:
        stays_away: how likely it comes back only then.
    """
    moments, tally = Moments(), Tally()
    running: dict[Job, Command] = {}
    try:
        for number in range(times):
            job = jobs[number % len(jobs)]
            loads = job not in running and moments.chance(0.3)
            before = job.saves.begun()
            tally.lost += _lost(running)  # some give up only now
            running |= {each: each.start() for each in jobs if each not in running}
            name = None if loads else job.wait_for_a_save(running[job], before)
            moments.wait()
            server.kill()
            tally.kills += 1
            if name is not None:
                cut = f"saved {job.saves.location}/{name} in " not in running[job].log.read_text()
                tally.before_the_end += cut
                moments.learn(before_the_end=cut)
            if moments.chance(stays_away):
                for command in running.values():
                    command.wait(_PATIENCE)
            server.start()
            tally.lost += _lost(running)
            for each in jobs:
                each.saves.check()
    finally:
        for command in running.values():
            command.kill()
            command.wait()
    print(tally)
    return tally


def _check_that_it_said_why(command: Command) -> None:
    """A run that was lost said so in one line, the same on every rank."""
    assert command.wait() == [2] * _RANKS, command.log.read_text()
    said = command.log.read_text()
    errors = {line for line in said.splitlines() if line.startswith("evo_core.train: error: ")}
    assert len(errors) == 1 and "Traceback" not in said, said


def _lost(running: dict[Job, Command]) -> int:
    """Take away the runs that have given up, and count them."""
    ended = [job for job, command in running.items() if command.ended()]
    for job in ended:
        _check_that_it_said_why(running.pop(job))
    return len(ended)
