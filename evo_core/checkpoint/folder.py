"""Checkpoint folders: how they are named, made once, found again and removed.

``<save folder>/<step>`` is a checkpoint after that many steps, ``<save folder>/snapshot/<step>`` a snapshot. A folder
is made once and never written again: where the name is taken (an attempt that died while it saved, another run), the
next one is ``<step>-2``. It counts as a checkpoint only once ``manifest.json`` is in it. Where several runs save into
one folder, each goes on from its own checkpoints and removes no other's. The save folder may be in an object store:
there the name of a folder is taken by its ``run.json``, which is written only where there is none.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evo_core.checkpoint.retention import outdated
from evo_core.checkpoint.run import FILE as OWNER
from evo_core.checkpoint.run import UNKNOWN, Run, check_not_overtaken
from evo_core.errors import CheckpointError, DataError
from evo_core.storage.atomic import clear_drafts, new_folder
from evo_core.storage.files import (
    below,
    create_file,
    delete,
    delete_folder,
    file_exists,
    file_sizes,
    list_folders,
    try_writing,
    write_hint,
)
from evo_core.storage.local import try_creating
from evo_core.storage.location import Location, file_name, is_remote, local_path
from evo_core.storage.s3.transfer import in_threads

MANIFEST = "manifest.json"
SNAPSHOTS = "snapshot"

_NAME = re.compile(r"(\d+)(?:-(\d+))?")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A checkpoint folder that was found, complete or not.

    Attributes:
        run: the run it is of; None where that cannot be read.
    """

    path: Location
    step: int
    attempt: int
    complete: bool
    snapshot: bool
    run: Run | None = UNKNOWN

    @property
    def age(self) -> tuple[int, int]:
        """Sorts a run's folders from the oldest to the newest."""
        return self.step, self.attempt

    @property
    def saved(self) -> tuple[float, tuple[int, int]]:
        """Sorts folders of all runs by when they were saved."""
        return self.run.saved if self.run is not None else 0.0, self.age

    @property
    def name(self) -> str:
        """Its path below the save folder."""
        name = file_name(self.path)
        return f"{SNAPSHOTS}/{name}" if self.snapshot else name


def find(root: Location) -> list[Found]:
    """Every checkpoint folder below a save folder, snapshots included, newest first.

    Raises:
        CheckpointError: the folder cannot be looked into.
    """
    places = [(root, False, name) for name in _folders(root)]
    if SNAPSHOTS in {name for _, _, name in places}:
        places += [(below(root, SNAPSHOTS), True, name) for name in _folders(below(root, SNAPSHOTS))]
    named = [
        (below(home, name), snapshot, match) for home, snapshot, name in places if (match := _NAME.fullmatch(name))
    ]
    look = in_threads if is_remote(root) else map  # of a store each question takes its time
    found = [each for each in look(lambda place: _found(*place), named) if not _is_gone(each)]
    return sorted(found, key=lambda f: (f.age, not f.snapshot), reverse=True)


def _folders(home: Location) -> list[str]:
    try:
        return list_folders(home)
    except DataError as error:
        raise CheckpointError(error.message, file=home, hint=error.hint) from error


def _found(path: Location, snapshot: bool, match: re.Match[str]) -> Found:
    return Found(path, int(match[1]), int(match[2] or 1), _is_complete(path), snapshot, Run.read(path))


def _is_gone(found: Found) -> bool:
    """Whether there is only a name: some stores go on listing a folder whose objects were removed."""
    return is_remote(found.path) and not found.complete and found.run is UNKNOWN


def _is_complete(path: Location) -> bool:
    try:
        return file_exists(below(path, MANIFEST))
    except DataError as error:
        if is_remote(path):
            raise CheckpointError(error.message, file=path, hint=error.hint) from error
        return True  # nobody may look inside: whoever reads it is told so


def newest_run(found: Sequence[Found], *, job: str | None = None, launch: Collection[str] | None = None) -> Run | None:
    """The run that saved last, as its newest complete checkpoint names it.

    Args:
        found: folders below a save folder.
        job: runs of this job go before others.
        launch: only runs that one of these marks was left by.
    """
    complete = [f for f in found if f.complete]
    runs = {f.run: f.saved for f in complete if f.run is not None}
    if launch is not None:
        runs = {run: saved for run, saved in runs.items() if set(run.launch) & set(launch)}
    elif not runs and complete:
        return UNKNOWN  # there is something, and nothing of it says whose it is
    return max(runs, key=lambda run: (run.job == job, runs[run]), default=None)


def unfinished_run(found: Sequence[Found], job: str) -> Run | None:
    """The last run of a job that began a checkpoint and has none that is complete: it ended in its first save."""
    completed = {f.run.id for f in found if f.complete and f.run is not None}
    own = [f for f in found if f.run is not None and f.run.job == job and f.run.id and f.run.id not in completed]
    return max(own, key=lambda f: f.saved).run if own else None


def complete_ones(root: Location, run: Run | None = None) -> list[Found]:
    """The complete checkpoints of a run, newest first; warns of incomplete ones among the newest.

    Those that do not say whose they are, for their ``run.json`` is damaged, are among them.

    Args:
        root: the save folder.
        run: default the one that saved last.
    """
    everything = find(root)
    run = run or newest_run(everything)
    complete: list[Found] = []
    for candidate in everything:
        if run is not None and candidate.run is not None and candidate.run.id != run.id:
            continue
        if candidate.complete:
            complete.append(candidate)
        elif not complete:
            log.warning("checkpoint %s is incomplete (no %s): ignored", candidate.path, MANIFEST)
    return complete


def newest_complete(root: Location) -> Location | None:
    """The newest complete checkpoint of the run that saved last below a save folder, or None; warns of newer
    incomplete ones."""
    complete = complete_ones(root if is_remote(root) else local_path(root))
    return complete[0].path if complete else None


def prepare(root: Location) -> None:
    """Make the save folder and see that it can be written to, before there is anything to save.

    Raises:
        CheckpointError: it cannot.
    """
    try:
        if isinstance(root, Path):
            root.mkdir(parents=True, exist_ok=True)
            try_creating(root)  # as the manifest, which comes last of all
        else:
            _try_store(root)
        try_writing(root)
    except OSError as error:
        reason = "is no folder" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        hint = write_hint(root, error)
        raise CheckpointError(f"no checkpoint can be saved there: {reason}", file=root, hint=hint) from error


def _try_store(root: str) -> None:
    """See that the store writes an object only where there is none, if it is asked to, for so are manifests written;
    and that it lists what was written, for so is a checkpoint found complete: some take ``a//b`` for ``a/b``."""
    folder = below(root, f".evo-probe-{uuid.uuid4().hex[:8]}")
    probe = below(folder, "1")
    create_file(probe, "1")
    try:
        if create_file(probe, "2"):
            raise CheckpointError(
                "no checkpoint can be saved there: the store replaces an object that is to be written only where there "
                "is none (If-None-Match)",
                file=root,
                hint="save into another store, or on a file system",
            )
        if "1" not in file_sizes(folder):
            raise CheckpointError(
                "no checkpoint can be saved there: the store does not list an object that was written there",
                file=root,
                hint="write the folder with single slashes, or save into another store",
            )
    finally:
        with suppress(OSError):  # who may write may not always delete
            delete(probe)


def create(root: Location, step: int, run: Run = UNKNOWN, *, snapshot: bool = False) -> Location:
    """Make a new checkpoint folder for a step of a run, under the first name that is free.

    Raises:
        CheckpointError: it cannot be made, or a process that began later goes on with the same run.
    """
    check_not_overtaken(run, root, (found.run for found in find(root)))
    home = below(root, SNAPSHOTS) if snapshot else root
    attempt = 1
    try:
        if isinstance(home, Path):
            home.mkdir(parents=True, exist_ok=True)
            clear_drafts(home)  # a kill in the middle of removing one leaves what may be large
        while True:
            path = below(home, str(step) if attempt == 1 else f"{step}-{attempt}")
            if _take(path, run):
                return path
            attempt += 1
    except OSError as error:
        message = f"no checkpoint can be saved: {error.strerror}"
        raise CheckpointError(message, file=home, hint=write_hint(home, error)) from error


def _take(path: Location, run: Run) -> bool:
    """Have a folder appear under that name with its ``run.json``, unless something is there: whatever is killed when,
    no folder is nobody's."""
    if not isinstance(path, Path):
        return not file_sizes(path) and run.write(path)
    if path.exists():
        return False
    try:
        with new_folder(path) as draft:
            return run.write(draft)
    except OSError as error:
        if error.filename2 is None:
            raise
        return False  # another run took it first


def resolve_own(path: Location) -> Location:
    """The checkpoint of ours that a folder means: itself, or the newest complete one in it.

    Raises:
        CheckpointError: there is none.
    """
    if _is_complete(path):
        return path
    if isinstance(path, Path) and not path.is_dir():
        raise CheckpointError("no such checkpoint folder", file=path)
    newest = newest_complete(path)
    if newest is None:
        raise CheckpointError(
            f"no complete checkpoint here: neither {MANIFEST} nor a folder <step>/{MANIFEST}",
            file=path,
            hint="nor another system's weights: config.json with safetensors or pytorch_model.bin, params.json with "
            "consolidated.00.pth, or model_tp0_pp0.pt",
        )
    return newest


def remove_old(root: Location, keep: int | None, run: Run = UNKNOWN, *, keep_every: int | None = None) -> None:
    """Remove what is too old of a run: see `evo_core.checkpoint.retention.outdated`."""
    for folder in outdated(find(root), run, keep, keep_every):
        remove(folder.path)


def remove(path: Location) -> None:
    """Remove a checkpoint; its manifest goes first, so that a half-removed one is never taken for complete.

    Of one that was put elsewhere, with a link to it in its place, the link goes.

    Raises:
        OSError: it cannot be removed.
    """
    if isinstance(path, Path) and path.is_symlink():
        delete(path)
        return
    delete(below(path, MANIFEST))
    delete_folder(path, last=OWNER)
