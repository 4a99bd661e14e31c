"""Tensors of a checkpoint, by `torch.distributed.checkpoint`: written and read by all ranks, at any layout."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from evo_core.errors import CheckpointError

MODEL, OPTIMIZER = "model", "optimizer"


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors from all ranks; replicated ones are written once, by turns, and sharded ones by their owners."""
    import torch.distributed.checkpoint as dcp

    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder))


def read_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors in place, each rank its own part, whatever the layout they were written at; not a collective.

    A tensor of another type than the stored one is filled with rounded values. Names that the checkpoint has beside
    these are left alone.

    Raises:
        CheckpointError: a name is missing, or a shape differs.
    """
    import torch.distributed.checkpoint as dcp

    from evo_core.checkpoint.stored import Reader

    reader = Reader(folder)
    stored = {name: tuple(entry.size) for name, entry in reader.tensors().items()}
    _compare(folder, tensors, stored)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            # Every rank knows what it needs and where that lies: reading takes no collectives.
            dcp.load(dict(tensors), storage_reader=reader, no_dist=True)
    except dcp.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise CheckpointError(f"cannot be read: {first}", file=folder) from error


def read_model(folder: Path, model: nn.Module) -> None:
    """Fill the parameters and buffers of a model; all of them, and nothing may be left over.

    Raises:
        CheckpointError: names or shapes are not those of the model.
    """
    check_model(folder, model)
    read_tensors(folder, model_tensors(model))


def check_model(folder: Path, model: nn.Module) -> None:
    """Compare names and shapes of a folder with those of a model, which needs no memory for them ("meta").

    Raises:
        CheckpointError: they are others.
    """
    tensors, stored = model_tensors(model), stored_shapes(folder)
    unexpected = sorted(set(stored) - set(tensors))
    if unexpected:
        raise CheckpointError(f"has {_listed(unexpected)}, which this model does not have", file=folder)
    _compare(folder, tensors, stored)


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model that a checkpoint keeps, by name."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a folder of tensors holds.

    Raises:
        CheckpointError: the folder does not hold any.
    """
    from evo_core.checkpoint.stored import Reader

    return {name: tuple(entry.size) for name, entry in Reader(folder).tensors().items()}


def _compare(folder: Path, tensors: Mapping[str, torch.Tensor], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Check that every tensor is stored in its shape."""
    missing = sorted(set(tensors) - set(stored))
    if missing:
        raise CheckpointError(f"lacks {_listed(missing)}", file=folder)
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != stored[name]:
            raise CheckpointError(
                f"{name} has shape {list(stored[name])} there and {list(tensor.shape)} here", file=folder
            )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
