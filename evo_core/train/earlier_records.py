"""The tensorboard records of an earlier run, put beside those of one that goes on (``resume_tb_folder``)."""

from __future__ import annotations

import os
from pathlib import Path

from evo_core.errors import ConfigError, UserError
from evo_core.results_folder import writing
from evo_core.storage.files import read_error, write_file
from evo_core.storage.location import Location
from evo_core.storage.stage import stage

_KEY = "resume_tb_folder"
_HINT = "name the tensorboard folder of the earlier run"

_RECORD = "events.out.tfevents."
"""What the names of tensorboard's files begin with."""


def copy_records(earlier: Location, folder: Path) -> None:
    """Put the event files of an earlier run into a folder, but for those that are there.

    Tensorboard takes the files of a folder for one curve, in the order of their names, which begin with the time. Where
    all of them lie in one sub-folder, as below the folder of a run, it is the one that is meant.

    Raises:
        UserError: there are none, or they cannot be copied.
    """
    try:
        there = stage(earlier, wanted=lambda path: _RECORD in path)
    except UserError as error:
        raise ConfigError(error.message, file=error.file, key=_KEY, hint=error.hint or _HINT) from error
    files = [path for path in sorted(there.rglob("*")) if path.name.startswith(_RECORD) and path.is_file()]
    if not files:
        raise ConfigError(f"{earlier} holds no tensorboard records", key=_KEY, hint=_HINT)
    root = os.path.commonpath([path.parent for path in files])
    for path in files:
        copy = folder / path.relative_to(root)
        if copy.exists():
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            unread = read_error(path, error)
            raise ConfigError(unread.message, file=path, key=_KEY, hint=unread.hint) from error
        with writing(folder):
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_file(copy, content)
