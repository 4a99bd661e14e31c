"""The rules of pipeline parallelism: what must fit to the stages that the layers are dealt out over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evo_core.config.schema.model import ModelConfig
from evo_core.errors import ConfigError
from evo_core.nearest import nearest


def staging_error(
    model: ModelConfig | Any, stages: int, key: str, *, among: Sequence[int] | None = None
) -> ConfigError | None:
    """What keeps the layers of a trained model from being dealt out over so many stages, which alone can be changed.

    Args:
        model: the `model` block, of any model type.
        stages: one on each rank of a pipeline.
        key: or option that asked for so many.
        among: the numbers of stages that the ranks allow; None allows all.
    """
    if stages == 1:
        return None
    if not isinstance(model, ModelConfig):
        return ConfigError(f"{stages}: {model.model_type} cannot be cut into stages", key=key, hint="set it to 1")
    return too_few_layers(model.num_layers, stages, key, among)


def too_few_layers(layers: int, stages: int, key: str, among: Sequence[int] | None = None) -> ConfigError | None:
    """Every stage has a layer, or this says which number of stages is the nearest that has."""
    if layers >= stages:
        return None
    fitting = [size for size in (range(1, layers + 1) if among is None else among) if size <= layers]
    message = f"the model's {layers} layers are too few for {stages} stages"
    return ConfigError(message, key=key, hint=f"nearest: {nearest(stages, fitting)}")
