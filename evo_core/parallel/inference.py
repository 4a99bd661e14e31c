"""The layout of ranks that only read a model: some hold it together, and copies of it take different prompts or texts.

Whatever a model was trained with, the ranks that share its layers exchange as by mtp here, and each rank of a pipeline
has one stage. All ranks choose the same tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from evo_core.config.pipeline_rules import staging_error
from evo_core.config.schema.model import ModelConfig
from evo_core.config.tensor_rules import sharing_error
from evo_core.errors import ConfigError
from evo_core.nearest import divisors, nearest
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.mesh import Mesh, make_mesh


def inference_mesh(
    model: ModelConfig | Any,
    tensor: int = 1,
    pipeline: int = 1,
    *,
    device: torch.device | str = "cpu",
    keys: tuple[str, str] = ("tensor", "pipeline"),
) -> Mesh:
    """The mesh of the default group's ranks; every rank must call it.

        mesh = inference_mesh(cfg.model, tensor=2)      # of 4 ranks: two copies of the model, on two ranks each

    Args:
        model: the `model` block, of any model type.
        tensor: ranks that share each layer.
        pipeline: stages that the layers are dealt out over, one to a rank (or to the ranks that share its layers).
        device: what the ranks compute on.
        keys: where `tensor` and `pipeline` were stated, for messages.

    Raises:
        ConfigError: the ranks do not divide by them, or the model cannot be cut so; names the nearest that fits both.
    """
    world_size = dist.get_world_size()
    degrees = Degrees.of_inference(tensor, pipeline, world_size, keys)
    key, stages_key = keys
    error = sharing_error(model, tensor, key)
    if error is not None and isinstance(model, ModelConfig):
        sizes = divisors(world_size // pipeline)
        fitting = [size for size in sizes if sharing_error(model, size, key) is None]
        error = ConfigError(error.message, key=key, hint=f"nearest on {world_size} ranks: {nearest(tensor, fitting)}")
    error = error or staging_error(model, pipeline, stages_key, among=divisors(world_size // tensor))
    if error is not None:
        raise error
    return make_mesh(degrees, device_type=torch.device(device).type)
