"""Weights in other systems' formats, and in ours: found by content, read lazily, written whole.

    weights = open_weights("/models/Qwen3-0.6B")      evo, internevo, llama or hf: what lies there says which
    model = build(weights, device="cuda")
    write_weights(weights, "/models/mine", "hf")      evo, internevo or hf

Every reader gives the plain form (plain.py), every writer takes it, so that any pair converts. The only tensors in
memory are those that are just being copied.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from evo_core.errors import CheckpointError
from evo_core.weights.evo import open_evo, write_evo
from evo_core.weights.fitting import fitting
from evo_core.weights.hf.folder import RotaryType, open_hf, write_hf
from evo_core.weights.internevo.folder import open_internevo
from evo_core.weights.internevo.writer import write_internevo
from evo_core.weights.job import configuration
from evo_core.weights.llama import open_llama
from evo_core.weights.plain import PlainForm, fill
from evo_core.weights.recognise import Kind, kind_of, locate
from evo_core.weights.source import Weights, dtype_setting
from evo_core.weights.target import check_free, new_folder

if TYPE_CHECKING:
    from evo_core.checkpoint.allowed import Allow, Difference
    from evo_core.config import ModelConfig
    from evo_core.model import Decoder

__all__ = [
    "Kind",
    "Target",
    "Weights",
    "as_model_type",
    "build",
    "cast",
    "check_free",
    "fill_model",
    "kind_of",
    "locate",
    "open_weights",
    "other_settings",
    "write_weights",
]

Target = Literal["evo", "internevo", "hf"]


def open_weights(
    uri: str | Path,
    kind: Kind | None = None,
    *,
    model: ModelConfig | None = None,
    check: bool = True,
    whole: bool = True,
) -> Weights:
    """The weights that a path or a hub id means.

    Args:
        kind: the format it must be in; None takes what lies there.
        model: the `model` block, for an InternEvo folder that does not say its shape.
        check: compare the files of our own format with their digests.
        whole: refuse another system's folder with tensors that are not all of a model; else `fill_model` says which.

    Raises:
        CheckpointError: nothing is there, it is of another format, damaged, or of a model that is not supported.
    """
    found, folder = locate(uri)
    if kind is not None and kind != found:
        raise CheckpointError(f"is in the format {found}, not {kind}", file=folder)
    readers: dict[Kind, Any] = {
        "evo": partial(open_evo, check=check),
        "hf": open_hf,
        "llama": partial(open_llama, whole=whole),
        "internevo": partial(open_internevo, model=model, whole=whole),
    }
    try:
        return readers[found](folder)
    except CheckpointError as error:
        raise (error if error.file else _in(folder, error)) from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Tensors of any rank under any name: a reader may stumble over them in ways that nobody has foreseen.
        raise CheckpointError(f"is no {found} folder that can be read: {error!r}", file=folder) from error


def write_weights(
    weights: Weights,
    target: str | Path,
    kind: Target,
    *,
    max_shard: int = 10 * 10**9,
    architecture: str | None = None,
    rotary_type: RotaryType | None = None,
) -> None:
    """Write weights in a format; the folder appears whole or not at all.

    Args:
        target: a new or an empty folder.
        max_shard, architecture, rotary_type: see `write_hf`.

    Raises:
        CheckpointError: the place is taken, the tensors are not those of the model, or the format has no place for
            what the model does.
    """
    with new_folder(Path(target)) as folder:
        try:
            PlainForm(weights.model).from_plain(weights.tensors)
        except CheckpointError as error:
            raise _in(weights.folder, error) from error
        if kind == "hf":
            write_hf(weights, folder, max_shard=max_shard, architecture=architecture, rotary_type=rotary_type)
        elif kind == "internevo":
            write_internevo(weights, folder)
        else:
            write_evo(weights, folder)


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    """The weights in another type; tensors that are kept wider than the rest (norms, routers) stay as they are."""
    usual = dtype_setting(weights.tensors, weights.folder)
    tensors = {
        name: tensor.to(dtype) if str(tensor.dtype) == usual else tensor for name, tensor in weights.tensors.items()
    }
    model = weights.model.model_copy(update={"dtype": str(dtype)})
    return replace(weights, tensors=tensors, config=weights.config.model_copy(update={"model": model}))


def as_model_type(weights: Weights, model_type: str) -> Weights:
    """The weights as those of another family, which orders and names them differently.

    Raises:
        CheckpointError: that family has no such model.
    """
    settings = weights.model.model_dump(exclude_unset=True) | {"model_type": model_type}
    job = configuration(settings, weights.folder)
    config = weights.config.model_copy(update={"model_type": model_type, "model": job.model})
    return replace(weights, config=config)


def build(weights: Weights, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """A model of its own kind with the weights.

    Raises:
        CheckpointError: the tensors are not those of the model.
    """
    from evo_core.model import build_model

    model = build_model(weights.model, device=device, dtype=dtype)
    fill_model(model, weights)
    return model


def fill_model(model: nn.Module, weights: Weights, allow: Allow | None = None) -> Difference:
    """Copy weights into a model of the same shape, be it of another family, with its rows in another order.

    Args:
        allow: what of the model may be missing, and is left as it is, or be left over; None: nothing.

    Raises:
        CheckpointError: the tensors are not those of the model, or its heads are others.
    """
    model = _decoder(model)
    there, here = weights.model, model.cfg
    try:
        for name in ("num_attention_heads", "num_kv_attention_heads", "head_dim", "norm_head"):
            if getattr(there, name) != getattr(here, name):
                raise CheckpointError(
                    f"has {name} {getattr(there, name)} there and {getattr(here, name)} here", key=f"model.{name}"
                )
        own, difference = fitting(weights, here, allow)
        fill(model, own)
        model.ending = weights.ending
        return difference
    except CheckpointError as error:
        raise _in(weights.folder, error) from error


def _decoder(model: nn.Module) -> Decoder:
    from evo_core.model import Decoder

    if not isinstance(model, Decoder):
        raise CheckpointError(f"{type(model).__name__} is none of the shipped families", key="model_type")
    return model


def other_settings(there: ModelConfig, here: ModelConfig) -> list[str]:
    """The settings that do not show in shapes and by which the same weights compute something else, one line each."""
    names = ("rope_base", "rope_scaling", "norm_type", "layer_norm_epsilon", "use_swiglu")
    return [
        f"model.{name} is {getattr(there, name)} with these weights and {getattr(here, name)} in this run"
        for name in names
        if getattr(there, name) != getattr(here, name)
    ]


def _in(folder: Path, error: CheckpointError) -> CheckpointError:
    return CheckpointError(error.message, file=folder, key=error.key, hint=error.hint)
