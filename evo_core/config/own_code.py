"""A model type that a checkpoint names by import path: code of its reader's, never code that came with the weights."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from evo_core.errors import ConfigError


def refuse_code_beside(file: Path, model_type: Any) -> None:
    """Refuse a model type whose module lies in the folder of a saved configuration, which a search path may lead to.

    Raises:
        ConfigError: it does.
    """
    if not isinstance(model_type, str) or ":" not in model_type:
        return
    name = model_type.partition(":")[0].partition(".")[0]
    folder = file.absolute().parent
    spec = None if name in sys.modules else PathFinder.find_spec(name)
    places = [] if spec is None else [*([spec.origin] if spec.has_location else []), *_folders(spec)]
    if any(Path(str(place)).resolve().is_relative_to(folder.resolve()) for place in places if place):
        raise ConfigError(
            f"{model_type} is code that came with the weights, which is not run",
            file=file,
            key="model_type",
            hint="read it, and put it into a package of your own on PYTHONPATH if you trust it",
        )


def _folders(spec: Any) -> list[str]:
    """Where a package looks for its modules; one without an ``__init__.py`` has nothing else."""
    return list(spec.submodule_search_locations or ())
