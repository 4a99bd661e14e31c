"""What is said of checkpoints by their names, their ``run.json`` and their manifests; no tensor is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from evo_core.checkpoint.folder import MANIFEST, Found, find
from evo_core.checkpoint.manifest import Manifest, read_manifest
from evo_core.checkpoint.run import FILE as RUN_FILE
from evo_core.checkpoint.run import Run
from evo_core.errors import CheckpointError, DamagedError
from evo_core.storage.files import below, file_exists
from evo_core.storage.location import Location, check_location, is_remote, local_path
from evo_core.storage.s3.transfer import in_threads


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder as it describes itself.

    Attributes:
        name: below the save folder; of one that was named by itself, its location.
        run: whose it is; None where that cannot be read.
        manifest: None where there is none, or a damaged one.
        problem: why the manifest that is there was not read.
        damaged: whether it is damaged, and not of a version or in a store that this one cannot read.
    """

    location: Location
    name: str
    run: Run | None
    manifest: Manifest | None
    problem: str | None = None
    damaged: bool = False

    @property
    def state(self) -> Literal["complete", "incomplete", "damaged", "unreadable"]:
        """Complete says that the manifest is whole, not that every file is as it names it."""
        if self.problem is not None:
            return "damaged" if self.damaged else "unreadable"
        return "incomplete" if self.manifest is None else "complete"

    @property
    def nbytes(self) -> int | None:
        """Bytes of its files, as the manifest says."""
        return None if self.manifest is None else sum(file.size for file in self.manifest.files.values())

    @property
    def loss(self) -> float | None:
        """Of its last step, where it is known."""
        about = self.manifest.about if self.manifest is not None else None
        loss = about.metrics.get("loss") if about is not None else None
        return loss if isinstance(loss, float) else None

    def summary(self) -> dict[str, Any]:
        """A line of a list, as plain data."""
        manifest, run = self.manifest, self.run
        return {
            "name": self.name,
            "location": str(self.location),
            "state": self.state,
            "problem": self.problem,
            "step": manifest and manifest.step,
            "tokens": manifest and manifest.tokens,
            "loss": self.loss,
            "bytes": self.nbytes,
            "run": run and run.id,
            "job": run and run.job,
            "saved": run and run.saved,
        }

    def record(self) -> dict[str, Any]:
        """All that is known, as plain data."""
        return self.summary() | {"manifest": self.manifest and self.manifest.plain}


def look(folder: str) -> Checkpoint | list[Checkpoint]:
    """The checkpoint in a folder, or the checkpoints below a save folder, newest first.

    Raises:
        UserError: there are none, or the store cannot be asked.
    """
    location = _place(folder)
    complete = file_exists(below(location, MANIFEST))
    if complete or file_exists(below(location, RUN_FILE)):
        return _described(location, str(location), complete=complete, run=Run.read(location))
    found = find(location)
    if not found:
        hint = "name a save folder, or a folder <step> in it"
        raise CheckpointError("there is no checkpoint of Evo here", file=location, hint=hint)
    describe = in_threads if is_remote(location) else map  # of a store each question takes its time
    return list(describe(_of, found))


def _place(folder: str) -> Location:
    check_location(folder, "FOLDER")
    if is_remote(folder):
        return folder
    path = local_path(folder, "FOLDER")
    if not path.is_dir():
        raise CheckpointError("no such folder", file=path)
    return path


def _of(found: Found) -> Checkpoint:
    return _described(found.path, found.name, complete=found.complete, run=found.run)


def _described(location: Location, name: str, *, complete: bool, run: Run | None) -> Checkpoint:
    if not complete:
        return Checkpoint(location, name, run, None)
    try:
        return Checkpoint(location, name, run, read_manifest(location))
    except CheckpointError as error:
        return Checkpoint(location, name, run, None, error.message, isinstance(error, DamagedError))
