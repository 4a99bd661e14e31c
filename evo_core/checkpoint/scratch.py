"""A folder of this machine where a rank writes files before they go to a store (``async_upload_tmp_folder``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

from evo_core.errors import CheckpointError
from evo_core.parallel.collectives import failing_together
from evo_core.storage.atomic import clear_drafts, new_draft
from evo_core.storage.files import delete, try_writing


@contextmanager
def scratch_folder(root: Path, group: dist.ProcessGroup | None) -> Iterator[Path]:
    """A folder of this rank below a root that is made; it goes when the block ends, or by a next one after a kill.

    Every rank of the group must call it.

    Raises:
        CheckpointError: it cannot be made, on every rank.
    """
    with failing_together(group):
        folder = made(root)
    try:
        yield folder
    finally:
        with suppress(OSError):
            delete(folder)


def made(root: Path) -> Path:
    """A new folder, hidden and named by this process, below a root that is made; those of the dead are removed.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        clear_drafts(root)
        try_writing(root)  # a full disk still takes folders
        folder = new_draft(root / "checkpoint")
        folder.mkdir()
        return folder
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint can be written there on its way to a store: {error.strerror}",
            file=root,
            key="ckpt.async_upload_tmp_folder",
            hint="name a folder on a disk with room, or leave the setting out: then nothing is written on the way",
        ) from error
