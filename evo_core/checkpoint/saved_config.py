"""The configuration that lies with weights, read as a part of their checkpoint: where it is wrong, that is."""

from __future__ import annotations

from pathlib import Path

from evo_core.checkpoint.manifest import CONFIG
from evo_core.config import TrainConfig, load_saved_config
from evo_core.config.errors import one_by_one
from evo_core.errors import CheckpointError, ConfigError


def saved_config(folder: Path) -> TrainConfig:
    """The configuration of the run that wrote a checkpoint of ours.

    Raises:
        CheckpointError: it cannot be read, or describes what no model is; the first mistake is named.
    """
    try:
        return load_saved_config(folder / CONFIG)
    except ConfigError as error:
        first, *others = one_by_one(error)
        more = f"; and {len(others)} more" if others else ""
        raise CheckpointError(
            first.message + more, file=first.file, line=first.line, key=first.key, hint=first.hint
        ) from error
