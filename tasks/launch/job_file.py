"""The configuration file that a launched command reads: a checked job with the step's own settings laid over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.storage.files import write_file

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


def write_job(job: TrainConfig, settings: Mapping[str, Any], path: Path) -> None:
    """Write `job` with `settings` (dotted key to value) to a YAML file, and read it back to check the whole.

    Values that came from the environment stay references, so that no secret is written.
    """
    from evo_core.config import as_literal, dump_yaml, load_config

    data = job.to_plain()
    for key, value in settings.items():
        *blocks, name = key.split(".")
        here = data
        for block in blocks:
            here = here.setdefault(block, {})
        here[name] = as_literal(value)
    write_file(path, dump_yaml(data))
    load_config(path)
