"""The layout of ranks that only read a model: some share each layer, and copies of it take different prompts or texts.

Whatever a model was trained with, it is exchanged as by mtp here, and all ranks choose the same tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from evo_core.config.tensor_rules import sharing_error
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.mesh import Mesh, make_mesh

if TYPE_CHECKING:
    from evo_core.config import ModelConfig


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
        ConfigError: the ranks do not divide by it, or the model cannot be cut so; names the nearest that fits.
    """
    degrees = Degrees.of_inference(tensor, dist.get_world_size(), key)
    if (error := sharing_error(model, tensor, key)) is not None:
        raise error
    return make_mesh(degrees, device_type=torch.device(device).type)
