"""Whose a checkpoint is. Several runs may save into one folder; each resumes its own and removes only its own.

``run.json`` is the first file of a checkpoint folder, so that one that was never completed has an owner too.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evo_core.storage.files import write_file

FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """A run as its checkpoints name it.

    Attributes:
        id: drawn when the run begins, kept when it is resumed; empty for those of versions that kept none.
        job: its ``job_name``.
        launch: what started its ranks: see `evo_core.parallel.environment.launch_marks`.
        passed_over: its checkpoints that were found damaged, as paths below the save folder. They are left alone.
        saved: when this checkpoint was begun, in unix seconds; 0 where that is not known.
    """

    id: str = ""
    job: str = ""
    launch: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    saved: float = 0.0

    @classmethod
    def new(cls, job: str, launch: Sequence[str] = ()) -> Run:
        """A run that begins now."""
        return cls(uuid.uuid4().hex, job, tuple(launch))

    def write(self, checkpoint: Path) -> None:
        """Write it into a new checkpoint folder, with the time."""
        write_file(checkpoint / FILE, json.dumps({**asdict(self), "saved": time.time()}))

    @classmethod
    def read(cls, checkpoint: Path) -> Run | None:
        """The run that a checkpoint folder is of; None where its ``run.json`` cannot be read."""
        try:
            raw: dict[str, Any] = json.loads((checkpoint / FILE).read_text("utf-8"))
            launch, passed_over = tuple(map(str, raw["launch"])), tuple(map(str, raw["passed_over"]))
            return cls(str(raw["id"]), str(raw["job"]), launch, passed_over, float(raw["saved"]))
        except FileNotFoundError:
            return UNKNOWN
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


UNKNOWN = Run()
"""The run of checkpoints that do not say: older versions wrote them."""
