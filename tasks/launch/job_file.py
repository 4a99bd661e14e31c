"""The configuration file that a launched command reads: a checked job with the step's own settings laid over it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.storage.files import write_file

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


@contextmanager
def job_file(job: TrainConfig, settings: Mapping[str, Any], path: Path) -> Iterator[None]:
    """The file of a job for the command that is launched in the block; what stays of it anybody may read.

    An address of a web hook that the job writes out is in it during the block alone, and for this user alone. A process
    that is killed leaves it there.
    """
    write_job(job, settings, path, inference=False)
    try:
        yield
    except Exception:  # not Ctrl-C and the like, after which the command may still come to read its file
        _conceal(path)
        raise
    _conceal(path)


def write_job(job: TrainConfig, settings: Mapping[str, Any], path: Path, *, inference: bool) -> None:
    """Write `job` with `settings` (dotted key to value) to a YAML file, and read it back to check the whole.

    Values that came from the environment stay references, so that no secret is written.

    Args:
        inference: the command does not train: the file is for anybody, without the addresses of web hooks.
    """
    from evo_core.config import as_literal, dump_yaml, load_config
    from evo_core.config.addresses import concealed

    data = job.to_plain()
    for key, value in settings.items():
        *blocks, name = key.split(".")
        here = data
        for block in blocks:
            here = here.setdefault(block, {})
        here[name] = as_literal(value)
    shown = concealed(data)
    if inference or shown == data:
        write_file(path, dump_yaml(shown))
    else:
        _write_for_this_user(path, dump_yaml(data))
    load_config(path, inference=inference)


def _write_for_this_user(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # the command may run on another machine


def _conceal(path: Path) -> None:
    from evo_core.config import dump_yaml, load_yaml
    from evo_core.config.addresses import concealed

    data = load_yaml(path, resolve=False)
    if (shown := concealed(data)) != data:
        write_file(path, dump_yaml(shown))
