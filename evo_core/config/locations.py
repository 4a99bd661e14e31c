"""The settings that are locations: each is written in the one grammar of `evo_core.storage.location`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evo_core.config.fields import value_at
from evo_core.errors import ConfigError
from evo_core.storage.location import LocationError, check_location, is_unprefixed, local_path

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

LOCATIONS = (
    "tensorboard_folder",
    "resume_tb_folder",
    "data.train_folder",
    "data.valid_folder",
    "ckpt.save_ckpt_folder",
    "ckpt.load_ckpt_info.path",
    "generation.ckpt_folder",
    "generation.data_folder",
    "generation.output_folder",
)
"""Those that may be in an object store, as soon as `evo_core.config.unsupported` does not refuse it."""

PATHS = (
    "data.tokenizer_path",
    "data.shm_path",
    "ckpt.async_upload_tmp_folder",
    "ckpt.stop_file_path",
    "monitor.alert.alert_file_path",
    "generation.prompts",
)
"""Those that are on this machine; a hub id passes for a path."""


def location_errors(config: TrainConfig) -> Iterator[ConfigError]:
    """A sentence for each location that is none, or that is in a store where only a path may stand."""
    for key in (*LOCATIONS, *PATHS):
        value = value_at(config, key) if _is_used(config, key) else None
        if isinstance(value, str):
            try:
                (local_path if key in PATHS else check_location)(value, key)
            except LocationError as error:
                yield error


def unprefixed_save(config: TrainConfig, key: str) -> str | None:
    """What to say of a folder to save in that is new and without a prefix; None where there is nothing to say."""
    folder = value_at(config, key)
    if folder is None or not is_unprefixed(folder) or local_path(folder).exists():
        return None
    return f"{key}: {folder} has no prefix and is taken for a local folder: write local:{folder} to say so"


def _is_used(config: TrainConfig, key: str) -> bool:
    """Whether a run looks at the setting; what it does not look at may be anything."""
    if key == "ckpt.save_ckpt_folder":
        return config.ckpt.enable_save_ckpt
    if key == "ckpt.load_ckpt_info.path":
        return config.ckpt.starts_from_load_ckpt_info
    return True
