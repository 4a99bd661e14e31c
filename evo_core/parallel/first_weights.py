"""First weights of a model on many ranks: those of one process, each tensor drawn once and its pieces handed out.

A generator cannot begin in the middle, so whoever needs a piece must draw the whole tensor. Of n ranks that hold a
model together each draws every n-th tensor, and hands the others what they hold of it; of an expert that is dealt out,
of the ranks that hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evo_core.model.build import build_model
from evo_core.model.decoder import Decoder
from evo_core.model.init import deviations, drawn, fill_constants, init_weights
from evo_core.parallel.collectives import broadcast, scatter
from evo_core.parallel.mesh import Axis, Mesh
from evo_core.placement import Held, Placed, Placement, dtype_of, local_of, placements_of, shards_of, span


@torch.no_grad()
def draw_first_weights(model: nn.Module, model_cfg: Any, seed: int, mesh: Mesh) -> None:
    """Draw what this rank holds of the first weights (`evo_core.model.init_weights`); every rank must call it.

    A model type of a user's own draws by itself, whole: each rank has it draw, and takes what it holds of it.
    """
    ranks = mesh.data.size * mesh.tensor.size
    if not isinstance(model, Decoder) and (placements := placements_of(model)):
        _take_from_whole(model, placements, model_cfg, seed)
        return
    if ranks == 1 or not isinstance(model, Decoder):
        init_weights(model, model_cfg, seed)
        return
    of_all: list[_Todo] = []
    dealt: list[_Todo] = []
    for name, parameter, std in deviations(model, model_cfg):
        held = model.held.get(name)
        (dealt if held is not None and held.dealt else of_all).append(_Todo(name, parameter, std, held))
    uniform = model_cfg.init_type == "uniform"
    _draw_in_turns(model, of_all, mesh.data, seed, mesh, uniform=uniform)
    if mesh.experts is not None:
        _draw_in_turns(model, dealt, mesh.experts.data, seed, mesh, uniform=uniform)
    fill_constants(model)


class _Todo(NamedTuple):
    """A matrix that is to be drawn: its name, itself, the standard deviation, and who holds it."""

    name: str
    parameter: nn.Parameter
    std: float
    held: Held | None


def _draw_in_turns(
    model: nn.Module, todo: Sequence[_Todo], copies: Axis, seed: int, mesh: Mesh, *, uniform: bool
) -> None:
    """Draw parameters that the same ranks hold, each on one of these.

    Args:
        copies: those of the ranks that hold them together with other tensor ranks.
    """
    ranks, own = copies.size * mesh.tensor.size, copies.rank * mesh.tensor.size + mesh.tensor.rank
    for start in range(0, len(todo), ranks):
        turn = todo[start : start + ranks]
        values: Tensor | None = None
        if own < len(turn):  # all ranks draw at the same time; then each hands out what it has
            name, parameter, std, held = turn[own]
            shape = tuple(parameter.shape) if held is None else held.placement.shape
            values = drawn(shape, std, seed=seed, name=name, uniform=uniform)
        for drawer, each in enumerate(turn):
            with _all_rows(model, each, mesh) as memory:
                _hand_out(memory, each.held, values if drawer == own else None, drawer, mesh)


@contextmanager
def _all_rows(model: nn.Module, todo: _Todo, mesh: Mesh) -> Iterator[Tensor]:
    """Memory to draw a parameter into: its own, or where data ranks share it (fsdp), some for the time of the block."""
    if (shards := shards_of(model)) is None:
        yield todo.parameter
        return
    share = local_of(todo.parameter.detach())
    whole = share.new_empty(todo.parameter.shape, dtype=shards.dtypes[todo.name])
    yield whole
    start, stop = span(whole.shape[0], mesh.zero.rank, mesh.zero.size)
    share.copy_(whole[start:stop])


def _take_from_whole(model: nn.Module, placements: Mapping[str, Placement], model_cfg: Any, seed: int) -> None:
    """The pieces, and the buffers that are as in the whole model, of one that was built and initialised as ever."""
    device, dtype = next(model.parameters()).device, dtype_of(model)
    whole = build_model(model_cfg, device=device, dtype=dtype)
    init_weights(whole, model_cfg, seed)
    drawn_whole, buffers = dict(whole.named_parameters()), dict(whole.named_buffers())
    for name, parameter in model.named_parameters():
        # Rounded to the type of the model first, as a parameter that is whole is.
        Placed(local_of(parameter.detach()), placements[name]).fill(drawn_whole[name])
    for name, buffer in model.named_buffers():
        if name in buffers and buffers[name].shape == buffer.shape:
            buffer.copy_(buffers[name])


def _hand_out(parameter: Tensor, held: Held | None, whole: Tensor | None, drawer: int, mesh: Mesh) -> None:
    """Fill a parameter on every rank: over the ranks that share it with the drawer, and from each of them over those
    that hold the same.

    Args:
        whole: what was drawn, on the drawer; None on the others.
        drawer: its number among the ranks of the stage, or of those that hold the expert.
    """
    shared, alike = mesh.tensor, mesh.data
    if held is not None and held.gathered:
        assert mesh.weights is not None  # which cut it
        shared, alike = mesh.weights.cut, mesh.weights.data
    elif held is not None and held.dealt:
        assert mesh.experts is not None
        alike = mesh.experts.data
    copy, part = divmod(drawer, shared.size)
    if held is None or shared.size == 1:
        if whole is not None:
            parameter.copy_(whole)
    elif alike.rank == copy:
        parts = None
        if whole is not None:
            parts = [torch.empty(each.local_shape, dtype=parameter.dtype) for each in held.on_each]
            for each, placement in zip(parts, held.on_each, strict=True):
                Placed(each, placement).fill(whole)
            parts = [each.to(parameter.device) for each in parts]
        scatter(parameter.detach(), parts, part, shared.group).wait()
    if alike.size > 1:
        broadcast(parameter.detach(), copy, alike.group).wait()
