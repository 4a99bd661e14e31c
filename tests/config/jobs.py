"""Small training jobs for the tests of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evo_core.config import TrainConfig
from evo_core.config.open_shape import read_open_job
from evo_core.config.resolve import merge
from evo_core.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
JOBS = sorted(
    path
    for path in (CONFIGS / "train").iterdir()
    if path.suffix in (".py", ".yaml") and read_open_job(path, [], {}) is None
)
"""The shipped training jobs that say the shape of their model."""
MODEL = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128}


def job(changes: dict[str, Any] | None = None) -> TrainConfig:
    """A legal job with nested changes laid over it."""
    return TrainConfig.model_validate(merge({"model": MODEL}, changes or {}))


def at(key: str, value: Any) -> dict[str, Any]:
    """``at("adam.lr", 1)`` is ``{"adam": {"lr": 1}}``."""
    nested: Any = value
    for name in reversed(key.split(".")):
        nested = {name: nested}
    return nested


def refusal(changes: dict[str, Any]) -> str:
    """The message that a job with these changes is refused with."""
    with pytest.raises(ConfigError) as caught:
        job(changes)
    return str(caught.value)
