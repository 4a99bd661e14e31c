"""Whose a checkpoint is. Several runs may save into one folder; each resumes its own and removes only its own.

``run.json`` is the first file of a checkpoint folder, so that one that was never completed has an owner too.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from evo_core.errors import CheckpointError, DataError
from evo_core.storage.files import below, create_file, read_if_there
from evo_core.storage.location import Location, is_remote

FILE = "run.json"

_LATEST = 1e11
"""Unix seconds that are no time of a checkpoint."""

_SESSION = re.compile(r"\d{10}\.\d{6} .+")


@dataclass(frozen=True)
class Run:
    """A run as its checkpoints name it.

    Attributes:
        id: drawn when the run begins, kept when it is resumed; empty for those of versions that kept none.
        job: its ``job_name``; where that is from the environment the reference, with a digest of the value.
        launch: what started its ranks: see `evo_core.parallel.environment.launch_marks`.
        passed_over: its checkpoints that were found damaged, as paths below the save folder. They are left alone.
        saved: when this checkpoint was begun, in unix seconds; 0 where that is not known.
        session: the start of the processes that saved it: when, and where. Of two sessions the later one is greater;
            empty where it is not known.
    """

    id: str = ""
    job: str = ""
    launch: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    saved: float = 0.0
    session: str = ""

    @classmethod
    def new(cls) -> Run:
        """A run that was never saved."""
        return cls(uuid.uuid4().hex)

    def begun_here(self, launch: Sequence[str], job: str, runs: Iterable[Run | None] = ()) -> Run:
        """The run as a session that begins now goes on with it.

        Args:
            runs: those that the checkpoints in the save folder name: the session is later than theirs of the same run,
                though they began on a machine whose clock is ahead of this one's.
        """
        last = max((_began(other.session) for other in runs if other is not None and other.id == self.id), default=0.0)
        session = f"{max(time.time(), last + 0.001):017.6f} {socket.gethostname()} process {os.getpid()}"
        return replace(self, launch=tuple(launch), job=job, session=session)

    def write(self, checkpoint: Location) -> bool:
        """Write it into a new checkpoint folder, with the time; False where another has.

        Raises:
            OSError: it cannot be written.
        """
        return create_file(below(checkpoint, FILE), json.dumps({**asdict(self), "saved": time.time()}))

    @classmethod
    def read(cls, checkpoint: Location) -> Run | None:
        """The run that a checkpoint folder is of; None where its ``run.json`` cannot be read.

        Raises:
            CheckpointError: the store does not answer.
        """
        try:
            content = read_if_there(below(checkpoint, FILE))
            if content is None:
                return UNKNOWN
            raw: dict[str, Any] = json.loads(content)
            launch, passed_over = tuple(map(str, raw["launch"])), tuple(map(str, raw["passed_over"]))
            session, saved = str(raw.get("session", "")), float(raw["saved"])
            if (session and not _SESSION.fullmatch(session)) or not 0 <= saved < _LATEST:
                return None
            return cls(str(raw["id"]), str(raw["job"]), launch, passed_over, saved, session)
        except DataError as error:
            if is_remote(checkpoint):
                raise CheckpointError(error.message, file=error.file, hint=error.hint) from error
            return None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None


def _began(session: str) -> float:
    """When a session began, in unix seconds; 0 where that is not known."""
    return float(session.partition(" ")[0] or 0)


def check_not_overtaken(run: Run, root: Location, runs: Iterable[Run | None]) -> None:
    """See that no session that began later saves as the same run: of two the later one goes on.

    Args:
        runs: those that the checkpoints in the save folder name.

    Raises:
        CheckpointError: there is one.
    """
    later = max((other.session for other in runs if other is not None and other.id == run.id), default="")
    if run.session and later > run.session:
        where = later.partition(" ")[2]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_began(later)))
        raise CheckpointError(
            f"no checkpoint can be saved: {where}, begun at {when}, has gone on with this run and saves it here too",
            file=root,
            key="ckpt.save_ckpt_folder",
            hint="end one of the two; runs that go on side by side need a save folder or a job_name of their own",
        )


UNKNOWN = Run()
"""The run of checkpoints that do not say: older versions wrote them."""
