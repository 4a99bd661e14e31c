"""kill -9 of a run at random moments of its saves, again and again, and what must be true after each."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.train.jobs import curve, losses, write_job
from tests.train.processes import Command
from tests.train.watched import Watched, newest

_RANKS = 2
_EVERY = 2
"""Steps between two saves."""

_FIRST_GUESS = 0.3


@dataclass
class Tally:
    """What kills met.

    Attributes:
        kills: of a run in a save, or just after it.
        incomplete: those that left a folder without a manifest.
    """

    kills: int = 0
    incomplete: int = 0

    def __str__(self) -> str:
        return f"{self.incomplete} of {self.kills} kills left an incomplete checkpoint"


class Moments:
    """Random moments of something whose length is learned: about every other one is before its end.

    Attributes:
        choose: where chance comes from. ``EVO_KILL_SEED`` repeats what was printed.
    """

    def __init__(self) -> None:
        seed = os.environ.get("EVO_KILL_SEED") or str(random.randrange(1 << 32))
        print(f"EVO_KILL_SEED={seed}")
        self.choose = random.Random(seed)
        self._reach = _FIRST_GUESS

    def wait(self) -> None:
        """Pass a random part of the time."""
        time.sleep(self.choose.uniform(0, self._reach))

    def learn(self, *, was_before_the_end: bool) -> None:
        """Take in how the last one fell."""
        self._reach *= 1.2 if was_before_the_end else 0.8


class Job:
    """A run on two ranks in float32, to be started again and again; it keeps its last two
    checkpoints.

    Args:
        folder: for the job's file, its data, logs and curve.
        saves: where it saves.
        kills: the run is long enough for that many.
        changes: of the job.
    """

    def __init__(self, folder: Path, saves: Watched, *, kills: int, **changes: Any) -> None:
        self.folder, self.saves, self._steps = folder, saves, _EVERY * (2 * kills + 2)
        self._changes = {"model__dtype": "torch.float32", "data__total_steps": self._steps, "ckpt__keep": 2, **changes}

    def undisturbed(self) -> list[float]:
        """The losses of the run that nobody disturbs and that saves nothing."""
        name = "undisturbed"
        write_job(self.folder, **self._changes, ckpt__enable_save_ckpt=False)
        assert self._command(name).wait() == [0] * _RANKS, (self.folder / f"{name}.log").read_text()
        return losses(self.folder / name)

    def start(self, *, every: int = _EVERY) -> Command:
        """Start it, or start it again where it was."""
        place = {"ckpt__save_ckpt_folder": self.saves.location, "ckpt__checkpoint_every": every}
        write_job(self.folder, **self._changes, **place)
        return self._command("run")

    def finish(self, expected: list[float]) -> None:
        """Run it to its end and compare its whole curve; nothing incomplete is left."""
        command = self.start(every=self._steps)
        assert command.wait(timeout=120) == [0] * _RANKS, command.log.read_text()
        assert losses(self.folder / "run") == expected
        assert [record["step"] for record in curve(self.folder / "run")] == list(range(self._steps))
        assert not (left := self.saves.begun() - self.saves.complete()), left
        self.saves.check()

    def _command(self, name: str) -> Command:
        arguments = ["--config", str(self.folder / "job.yaml"), "--folder", str(self.folder / name)]
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        return Command(arguments, log, ranks=_RANKS)


def kill_in_saves(job: Job, times: int) -> Tally:
    """Start the job and kill it in a save of its, `times` times: all its ranks, or one that the others end after.

    After each kill every complete checkpoint is whole, and the next start goes on from the newest.
    """
    moments, tally, goes_on_from = Moments(), Tally(), None
    for _ in range(times):
        command, before = job.start(), job.saves.begun()
        try:
            while not (job.saves.begun() - before):
                assert not command.ended(), command.log.read_text()
                time.sleep(0.001)
            moments.wait()
            one = [moments.choose.choice(command.pids)]
            command.kill(one if moments.choose.random() < 0.3 else None)
            command.wait()
        finally:
            command.kill()
        said = command.log.read_text()
        assert goes_on_from is None or f"resuming from {job.saves.location}/{goes_on_from}\n" in said, said
        left, complete = job.saves.begun(), job.saves.complete()
        tally.kills += 1
        tally.incomplete += (cut := bool(left - complete - before))
        moments.learn(was_before_the_end=cut)
        goes_on_from = newest(complete)
        job.saves.check()
    print(tally)
    return tally
