"""``evo convert SRC TGT``: weights from one system's format to another's."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from evo_core.command_line.program import plain_app, run
from evo_core.errors import CheckpointError, ConfigError
from evo_core.job import report_progress
from evo_core.storage.location import check_location, local_path

if TYPE_CHECKING:
    from torch import Tensor

    from evo_core.placement import Rectangle
    from evo_core.weights import Target, Weights

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DTYPES = ("bfloat16", "float16", "float32", "float64")

app = plain_app()


@app.command()
def convert_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder with weights, here or in S3, or a hub id.")],
    target: Annotated[str, typer.Argument(metavar="TGT", help="A new or an empty folder.")],
    from_: Annotated[
        Literal["evo", "internevo", "llama", "hf"] | None,
        typer.Option("--from", help="What SRC must be. [default: what lies there]"),
    ] = None,
    to: Annotated[
        Literal["hf", "evo", "internevo"] | None,
        typer.Option(help="What TGT becomes. [default: hf of evo, evo of any other]"),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="To put with it. [default: the one beside SRC]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Of the weights: {', '.join(DTYPES)}. [default: as they are]")
    ] = None,
    max_shard: Annotated[str, typer.Option(metavar="SIZE", help="Largest file of a Hugging Face folder.")] = "10GB",
    rotary_type: Annotated[
        Literal["origin", "dynamic"] | None,
        typer.Option(
            help="Whether a Hugging Face folder stretches its rotary base for long texts. [default: as the model does]"
        ),
    ] = None,
    model_type: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Family to read the weights as, such as INTERNLM2_PUBLIC for a Llama. [default: the nearest to SRC]",
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Class of a Hugging Face folder; LlamaForCausalLM suits most models."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Holds the `model` block, for an InternEvo folder without one."),
    ] = None,
) -> None:
    """Convert weights from one system's format to another's.

    The format of SRC is told from what lies there; TGT becomes a Hugging Face folder where SRC is a checkpoint of Evo,
    and a checkpoint of Evo otherwise, unless --to says what else. Optimizer states are not converted. The target
    appears whole or not at all, and one tensor at a time is in memory.
    """
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) != 0:
        return  # one process does it all
    largest = size_in_bytes(max_shard)
    if dtype is not None and dtype.removeprefix("torch.") not in DTYPES:
        raise ConfigError(f"unknown type {dtype!r}", key="--dtype", hint=f"one of {', '.join(DTYPES)}")
    model = None
    if config is not None:
        from evo_core.config import load_config

        model = load_config(config).model

    from evo_core.weights import as_model_type, check_free, open_weights, write_weights

    check_location(source, "SRC")
    folder = local_path(target, "TGT")
    check_free(folder)
    weights = open_weights(source, from_, model=model)
    format_: Target = to or ("hf" if weights.kind == "evo" else "evo")
    for option, given in (("--architecture", architecture), ("--rotary-type", rotary_type)):
        if given and format_ != "hf":
            raise ConfigError(f"is for a Hugging Face folder, not for {format_}", key=option)
    if model_type is not None:
        weights = as_model_type(weights, model_type)
    if dtype is not None:
        weights = _of_type(weights, dtype)
    if tokenizer is not None:
        weights = _with_tokenizer(weights, local_path(tokenizer, "--tokenizer"))
    _check_tokenizer(weights)
    write_weights(
        _reporting(weights), folder, format_, max_shard=largest, architecture=architecture, rotary_type=rotary_type
    )
    print(_summary(weights, format_, folder), flush=True)


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.convert") -> None:
    """Carry out a command line; exits with 2 for a mistake of the user's."""
    run(app, words, program)


def size_in_bytes(text: str) -> int:
    """``10GB``, ``512MiB``, ``1000000``.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B?)", text.strip(), re.IGNORECASE)
    unit = (match[2].upper() if match else "") or ""
    unit = unit if unit in _UNITS else f"{unit}B"
    if match is None or unit not in _UNITS or float(match[1]) == 0:
        raise ConfigError(f"{text!r} is no size", key="--max-shard", hint="write 10GB or 512MiB")
    return int(float(match[1]) * _UNITS[unit])


def _of_type(weights: Weights, dtype: str) -> Weights:
    import torch

    from evo_core.weights import cast

    return cast(weights, getattr(torch, dtype.removeprefix("torch.")))


def _with_tokenizer(weights: Weights, tokenizer: Path) -> Weights:
    """The weights with another tokenizer, and with the ids that end a text as they are named beside it."""
    from evo_core.checkpoint.generation_settings import read_generation

    beside = read_generation(tokenizer if tokenizer.is_dir() else tokenizer.parent)
    return replace(weights, tokenizer=tokenizer, generation=beside or weights.generation)


def _check_tokenizer(weights: Weights) -> None:
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    if weights.tokenizer is None:
        return
    pieces, vocab = load_tokenizer(weights.tokenizer).vocab_size, weights.model.vocab_size
    if pieces > vocab:
        message = f"has {pieces} pieces, which do not fit the model's vocabulary of {vocab}"
        raise CheckpointError(message, file=weights.tokenizer, hint="name the model's own: --tokenizer PATH")


def _reporting(weights: Weights) -> Weights:
    """The weights, with progress reported as they are read."""
    from evo_core.checkpoint.finite import check_finite

    total = sum(tensor.nbytes for tensor in weights.tensors.values())
    done = 0

    def read(name: str, where: Rectangle) -> Tensor:
        nonlocal done
        tensor = weights.tensors[name].part(where)
        check_finite([(name, tensor)], weights.folder)
        done = min(done + tensor.nbytes, total)
        report_progress(done, total, "bytes")
        return tensor

    watched = {name: replace(tensor, source=partial(read, name)) for name, tensor in weights.tensors.items()}
    return replace(weights, tensors=watched)


def _summary(weights: Weights, to: str, target: Path) -> str:
    from evo_core.weights.plain import PlainForm

    parameters = sum(math.prod(shape) for shape in PlainForm(weights.model).shapes.values())
    files = [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e9
    return (
        f"{weights.kind} -> {to}: {weights.model.model_type}, {parameters:,} parameters, {size:.3f} GB in "
        f"{len(files)} files: {target}"
    )
