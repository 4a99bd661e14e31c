"""The layout of ranks that only read a model: some share each layer, and copies of it take different prompts or texts.

Whatever a model was trained with, it is exchanged as by mtp here, and all ranks choose the same tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from evo_core.config.schema.model import ModelConfig
from evo_core.config.tensor_rules import sharing_error
from evo_core.errors import ConfigError
from evo_core.nearest import divisors, nearest
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.mesh import Mesh, make_mesh


def inference_mesh(
    model: ModelConfig | Any, tensor: int = 1, *, device: torch.device | str = "cpu", key: str = "tensor"
) -> Mesh:
    """The mesh of the default group's ranks; every rank must call it.

        mesh = inference_mesh(cfg.model, tensor=2)      # of 4 ranks: two copies of the model, on two ranks each

    Args:
        model: the `model` block, of any model type.
        tensor: ranks that share each layer.
        device: what the ranks compute on.
        key: where `tensor` was stated, for messages.

    Raises:
        ConfigError: the ranks do not divide by it, or the model cannot be cut so; names the nearest that fits both.
    """
    world_size = dist.get_world_size()
    degrees = Degrees.of_inference(tensor, world_size, key)
    error = sharing_error(model, tensor, key)
    if error is not None and isinstance(model, ModelConfig):
        fitting = [size for size in divisors(world_size) if sharing_error(model, size, key) is None]
        error = ConfigError(error.message, key=key, hint=f"nearest on {world_size} ranks: {nearest(tensor, fitting)}")
    if error is not None:
        raise error
    return make_mesh(degrees, device_type=torch.device(device).type)
