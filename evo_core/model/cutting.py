"""Cutting a decoder into stages.

Whoever cuts a model does it in this order, so that no process ever holds all of it:

    model = build_model(cfg, device="meta")     the whole model, without memory
    keep_stages(model, stages)                  the other stages' modules go
    ...                                         linear layers are replaced by ones that hold a part
    allocate(model, device)                     memory for what is left
    init_weights(model, cfg, seed)              or weights from a checkpoint, whose names are the same
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from evo_core.model.decoder import Decoder
from evo_core.model.stage import Stage
from evo_core.placement import shards_of


def keep_stages(model: Decoder, stages: Sequence[Stage]) -> None:
    """Take out of a decoder, in place, all but some stages. What stays keeps its name.

    With a tied head the last stage keeps an embedding under the embedding's name, for the weight, even where the first
    one is elsewhere and has the same: then their gradients belong together.

    Args:
        stages: in the order of the model.

    Raises:
        ValueError: the model does not hold them.
    """
    kept = {number for stage in stages for number in stage.blocks}
    has_embedding, has_head = any(stage.has_embedding for stage in stages), any(stage.has_head for stage in stages)
    held = {int(name) for name in model.blocks}
    begins, ends = any(stage.has_embedding for stage in model.stages), any(stage.has_head for stage in model.stages)
    if not kept <= held or has_embedding > begins or has_head > ends:
        raise ValueError(f"{list(stages)} are no parts of {list(model.stages)}")
    for number in held - kept:
        del model.blocks[str(number)]
    if not has_head:
        model.norm = model.head = None
    if not has_embedding and (model.head is None or not model.head.is_tied):
        model.embedding = None
    model.stages = tuple(stages)


def all_stages(model: nn.Module) -> nn.Module:
    """The model with every stage and every expert, to know its names and shapes: as it is where it has them all, else
    without memory."""
    if not isinstance(model, Decoder) or (model.has_every_stage and model.has_every_expert):
        return model
    return Decoder(model.cfg, model.family, device="meta", dtype=model.dtype)


def allocate(model: nn.Module, device: torch.device | str) -> None:
    """Give memory, uninitialised, to the parameters and buffers of a model that are on the meta device, in place.

    Others stay as they are: a module that replaced one of the model's may have brought its own.
    """
    if shards_of(model) is not None:  # whose parts have to know of their new memory
        model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
        return
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                held = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
                module.register_parameter(name, held)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(
                    name, torch.empty_like(buffer, device=device), name not in module._non_persistent_buffers_set
                )
