"""Tensors of a checkpoint, by `torch.distributed.checkpoint`: written and read by all ranks, at any layout.

A tensor is given as what the rank holds of it (`Placed`); a plain one is whole on every rank.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Union

import torch
import torch.distributed as dist
from torch import nn

from evo_core.checkpoint.allowed import Allow, Difference, differing, listed
from evo_core.checkpoint.format1 import flat_shape, turns
from evo_core.checkpoint.writers import Cut, cut, own_parts
from evo_core.errors import CheckpointError
from evo_core.model.cutting import all_stages
from evo_core.placement import Placed, Placement, Rectangle, local_of, placements_of, shards_of
from evo_core.storage.location import Location

if TYPE_CHECKING:
    from evo_core.checkpoint.parts import Parts
    from evo_core.checkpoint.records import FileRecord
    from evo_core.checkpoint.stored import Reader

MODEL, OPTIMIZER = "model", "optimizer"

Records = Mapping[str, "FileRecord"]
"""What a manifest says of the files of a folder, by name."""

Stored = Union["Reader", Location]
"""A folder of tensors that is open, with what the manifest says of its files; or one that nothing vouches for."""


def placed(tensors: Mapping[str, torch.Tensor | Placed]) -> dict[str, Placed]:
    """What the rank holds of each tensor of any shape, where a plain one is whole on every rank."""
    ranks = range(dist.get_world_size() if dist.is_initialized() else 1)
    return {
        name: tensor if isinstance(tensor, Placed) else Placed(tensor, Placement.whole(tensor.shape, ranks))
        for name, tensor in tensors.items()
    }


def write_tensors(folder: Location, tensors: Mapping[str, torch.Tensor | Placed]) -> Records:
    """Write tensors of any shape from all ranks, each piece once; those that several ranks hold by all of these, in
    equal parts. Returns the records of the files that this rank wrote."""
    here = placed(tensors)
    return write_parts(folder, own_tensors(here, cut(here)))


def own_tensors(tensors: Mapping[str, Placed], shared_out: Cut) -> dict[str, Parts]:
    """What this rank writes of tensors of any shape, which are shared out over those that hold them."""
    from evo_core.checkpoint.parts import Parts

    own = own_parts(shared_out, dist.get_rank())
    return {n: Parts(tensors[n].placement.shape, tensors[n].local.dtype, parts) for n, parts in own.items()}


def write_parts(folder: Location, parts: Mapping[str, Parts], group: dist.ProcessGroup | None = None) -> Records:
    """Write what each rank has of tensors, named alike on all; every rank of the group (None: the default) calls it.

    Returns:
        The records of the files that this rank wrote, by name.
    """
    import torch.distributed.checkpoint as dcp

    from evo_core.checkpoint.tensor_files import Writer

    writer = Writer(folder, sum(values.nbytes for each in parts.values() for _, values in each.rectangles()))
    dcp.save(dict(parts), storage_writer=writer, process_group=group)
    return writer.records


def read_tensors(stored: Stored, tensors: Mapping[str, torch.Tensor | Placed], *, flat: bool = False) -> None:
    """Fill tensors in place, each rank its own pieces, whatever the layout they were written at; not a collective.

    A tensor of another type than the stored one is filled with rounded values. Names that the checkpoint has beside
    these are left alone.

    Args:
        flat: each lies there as a vector, as the optimizer's states of format 1.

    Raises:
        CheckpointError: a name is missing, or a shape differs.
        DamagedError: a file is not as it was written.
    """
    from evo_core.checkpoint.parts import Parts

    reader = _opened(stored)
    here = placed(tensors)
    wanted = _wanted(here, flat)
    _compare(reader, wanted)
    here = {name: each for name, each in here.items() if math.prod(each.placement.shape)}
    for turn in turns(here) if flat else [_rectangles(here)]:
        items = {name: Parts(wanted[name], here[name].local.dtype, parts) for name, parts in turn.items()}
        _read(reader, items)


def _read(reader: Reader, items: Mapping[str, torch.Tensor]) -> None:
    import torch.distributed.checkpoint as dcp

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            # Every rank knows what it needs and where that lies: reading takes no collectives.
            dcp.load(dict(items), storage_reader=reader, no_dist=True)
    except dcp.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, CheckpointError):
            raise cause from None
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise CheckpointError(f"cannot be read: {first}", file=reader.folder) from error


def _rectangles(tensors: Mapping[str, Placed]) -> dict[str, list[tuple[Rectangle, torch.Tensor]]]:
    """Where in the whole tensor each piece lies, and the memory for it."""
    return {name: [(piece.where, view) for piece, view in each.pieces()] for name, each in tensors.items()}


def check_tensors(stored: Stored, tensors: Mapping[str, torch.Tensor | Placed], *, flat: bool = False) -> None:
    """Compare names and shapes of tensors with those of a folder, as `read_tensors` does before it reads.

    Raises:
        CheckpointError: one is missing, or has another shape.
    """
    _compare(_opened(stored), _wanted(placed(tensors), flat))


def read_model(stored: Stored, model: nn.Module, allow: Allow | None = None) -> Difference:
    """Fill the parameters and buffers of a model.

    Args:
        allow: what may be missing, and is left as it is, or be left over; None: nothing.

    Raises:
        CheckpointError: names or shapes are not those of the model, or what is one weight in it is two there.
    """
    reader = _opened(stored)
    difference = check_model(reader, model, allow)
    with filling(model) as tensors:
        read_tensors(reader, {n: each for n, each in tensors.items() if n not in difference.missing})
    _check_tied(reader, model, difference.missing)
    return difference


def _check_tied(reader: Reader, model: nn.Module, missing: Collection[str]) -> None:
    """Check that each weight that a model has under several names is the same under all of them in a folder, as far
    as it is here."""
    first: dict[nn.Parameter, str] = {}
    kept = model_tensors(model)  # some models leave out the second name
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in kept or name in missing or (before := first.setdefault(parameter, name)) == name:
            continue
        for stored in (before, name):
            there = Placed(torch.empty_like(kept[before].local), kept[before].placement)
            read_tensors(reader, {stored: there})
            if not torch.allclose(there.local, kept[before].local, rtol=0, atol=0, equal_nan=True):
                raise CheckpointError(
                    f"{before} and {name} are two weights there and one in this model", file=reader.folder
                )


def check_model(stored: Stored, model: nn.Module, allow: Allow | None = None) -> Difference:
    """Compare names and shapes of a folder with those of a model, which needs no memory for them ("meta"), and of
    which there may be some stages here: what it says is the same at all of them.

    Raises:
        CheckpointError: they are others, and `allow` does not say that they may be.
    """
    reader = _opened(stored)
    return differing(_wanted(model_tensors(all_stages(model))), reader.shapes(), allow, reader.folder)


def unread(model: nn.Module, missing: Collection[str]) -> list[str]:
    """The missing tensors that are not read under another name that the model has for them; of all its stages."""
    model = all_stages(model)
    kept, parameters = model_tensors(model), dict(model.named_parameters(remove_duplicate=False))
    read = {parameter for name, parameter in parameters.items() if name in kept and name not in missing}
    return [name for name in missing if name not in parameters or parameters[name] not in read]


def model_tensors(model: nn.Module) -> dict[str, Placed]:
    """What this rank holds of the tensors of a model that a checkpoint keeps, by name; a buffer is whole, and on every
    rank."""
    placements = placements_of(model)
    named = list(model.named_parameters(remove_duplicate=False))
    of_parameter = {parameter: placements[name] for name, parameter in named if name in placements}
    cut = {name: of_parameter[parameter] for name, parameter in named if parameter in of_parameter}
    tensors = {name: _as_kept(model, name, tensor.detach()) for name, tensor in model.state_dict().items()}
    return placed({name: Placed(each, cut[name]) if name in cut else each for name, each in tensors.items()})


def _as_kept(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What is here of a tensor, in the type in which a checkpoint keeps it: a share of fsdp's is wider."""
    shards = shards_of(model)
    return tensor if shards is None else local_of(tensor).to(shards.dtypes.get(name, tensor.dtype))


@contextmanager
def filling(model: nn.Module) -> Iterator[dict[str, Placed]]:
    """What this rank holds of the tensors of a model, as `model_tensors` gives it, to be written into in the block."""
    tensors = model_tensors(model)
    yield tensors
    if shards_of(model) is not None:
        for name, tensor in model.state_dict().items():
            local_of(tensor.detach()).copy_(tensors[name].local)  # itself, or from the narrower type


def stored_shapes(stored: Stored) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a folder of tensors holds.

    Raises:
        CheckpointError: the folder does not hold any.
    """
    return _opened(stored).shapes()


def _opened(stored: Stored) -> Reader:
    from evo_core.checkpoint.stored import Reader

    return stored if isinstance(stored, Reader) else Reader(stored)


def _wanted(tensors: Mapping[str, Placed], flat: bool = False) -> dict[str, tuple[int, ...]]:
    """The whole shape that each tensor should have in a folder."""
    shapes = {name: each.placement.shape for name, each in tensors.items()}
    return {name: flat_shape(shape) for name, shape in shapes.items()} if flat else shapes


def _compare(reader: Reader, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Check that every tensor is stored in its shape; of one without elements there is nothing to store."""
    wanted, stored = {name: shape for name, shape in wanted.items() if math.prod(shape)}, reader.shapes()
    missing = sorted(set(wanted) - set(stored))
    if missing:
        raise CheckpointError(f"lacks {listed(missing)}", file=reader.folder)
    for name, shape in wanted.items():
        if shape != stored[name]:
            message = f"{name} has shape {list(stored[name])} there and {list(shape)} here"
            raise CheckpointError(message, file=reader.folder)
