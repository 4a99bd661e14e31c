"""What a folder of weights says of itself, before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evo_core.checkpoint.json_file import read_json
from evo_core.errors import CheckpointError, DataError
from evo_core.storage.files import below, file_exists
from evo_core.storage.stage import stage
from evo_core.weights import open_weights
from evo_core.weights.hf.config import architecture_of, model_settings
from evo_core.weights.hf.folder import CONFIG
from evo_core.weights.job import configuration
from evo_core.weights.tokenizer_files import find_tokenizer

if TYPE_CHECKING:
    from evo_core.config import ModelConfig, TrainConfig

_SETTINGS = (".json", ".model", ".txt", ".jinja")
"""Endings of files that are not the weights."""


class Described(NamedTuple):
    """A configuration whose `model` block describes the network, and where its tokenizer lies."""

    config: TrainConfig
    tokenizer: Path | None


def on_disk(folder: Path, model: ModelConfig | None = None) -> Described:
    """What a folder's settings and the shapes of its tensors say.

    Args:
        model: the `model` block, for an InternEvo folder that does not say its shape.

    Raises:
        CheckpointError: it is of no format, or of a model that is not supported.
    """
    weights = open_weights(folder, model=model)
    return Described(weights.config, weights.tokenizer)


def in_store(uri: str) -> Described | None:
    """What the settings in a store say, without the weights, which are not fetched; None where it takes those.

    Raises:
        CheckpointError: the store cannot be read, or the settings are of a model that is not supported.
    """
    try:
        if not file_exists(below(uri, CONFIG)):
            return None
        folder = stage(uri, wanted=lambda path: "/" not in path and path.endswith(_SETTINGS))
    except DataError as error:
        raise CheckpointError(error.message, file=error.file, hint=error.hint) from error
    config = read_json(folder / CONFIG)
    architecture = architecture_of(config, folder / CONFIG)
    settings = model_settings(config, architecture, folder / CONFIG)
    stored = config.get("torch_dtype", config.get("dtype"))
    if isinstance(stored, str):
        settings["dtype"] = f"torch.{stored}"
    return Described(configuration(settings, folder / CONFIG), find_tokenizer(folder))


def as_imported(found: Described, model_type: str | None, dtype: str | None) -> TrainConfig:
    """The configuration once the weights are held as another family, or in another type.

    Raises:
        CheckpointError: that family has no such model.
    """
    model: Any = found.config.model
    settings = model.model_dump(exclude_unset=True)
    if model_type is not None:
        settings["model_type"] = model_type
    if dtype is not None:
        settings["dtype"] = f"torch.{dtype}"
    return configuration(settings, Path(CONFIG)) if model_type or dtype else found.config
