"""Cutting a decoder into stages.

Whoever cuts a model does it in this order, so that no process ever holds all of it:

    model = build_model(cfg, device="meta")     the whole model, without memory
    keep_stage(model, stage)                    the other stages' modules go
    ...                                         linear layers are replaced by ones that hold a part
    allocate(model, device)                     memory for what is left
    init_weights(model, cfg, seed)              or weights from a checkpoint, whose names are the same
"""

from __future__ import annotations

import torch
from torch import nn

from evo_core.model.decoder import Decoder
from evo_core.model.stage import Stage


def keep_stage(model: Decoder, stage: Stage) -> None:
    """Take out of a decoder, in place, what other stages hold. What stays keeps its name.

    With a tied head the last stage keeps an embedding of its own, under the embedding's name, for the weight: the first
    stage has the same one, and their gradients belong together.

    Raises:
        ValueError: the model does not hold that stage.
    """
    held = model.stage
    beyond = set(stage.blocks) - set(held.blocks)
    if beyond or stage.has_embedding > held.has_embedding or stage.has_head > held.has_head:
        raise ValueError(f"{stage} is no part of {held}")
    for number in set(held.blocks) - set(stage.blocks):
        del model.blocks[str(number)]
    if not stage.has_head:
        model.norm = model.head = None
    if not stage.has_embedding and (model.head is None or not model.head.is_tied):
        model.embedding = None
    model.stage = stage


def allocate(model: nn.Module, device: torch.device | str) -> None:
    """Give memory, uninitialised, to the parameters and buffers of a model that are on the meta device, in place.

    Others stay as they are: a module that replaced one of the model's may have brought its own.
    """
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
