"""From the settings in another system's folder to a checked configuration of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

TOP_LEVEL = ("model_type", "use_fp32_norm", "moe")
"""What a `ModelConfig` knows and a configuration states beside its `model` block."""


def configuration(model: Mapping[str, Any], file: Path) -> TrainConfig:
    """A configuration of a model alone, everything else as it is by default.

    Args:
        model: the settings of the `model` block, and the top-level ones that belong to it.
        file: where they come from, for messages.

    Raises:
        CheckpointError: they describe no model that there is here.
    """
    from evo_core.config import TrainConfig

    settings = {name: model[name] for name in TOP_LEVEL if name in model}
    block = {name: value for name, value in model.items() if name not in TOP_LEVEL}
    try:
        return TrainConfig.model_validate({**settings, "model": block})
    except ConfigError as error:
        raise CheckpointError(f"describes a model that is not supported: {error}", file=file) from error


def width_of_mlp(hidden_size: int, width: int) -> dict[str, Any]:
    """``mlp_ratio`` and ``multiple_of`` that give an MLP exactly this width."""
    multiple = 256
    while width % multiple:
        multiple //= 2
    ratio = width / hidden_size
    if int(hidden_size * ratio) != width:  # the quotient was rounded down
        ratio = (width + 0.5) / hidden_size
    return {"mlp_ratio": ratio, "multiple_of": multiple}
