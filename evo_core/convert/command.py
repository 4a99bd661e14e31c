"""``evo convert SRC TGT``: weights from one system's format to another's.

The format of SRC is told from what lies there; TGT becomes a Hugging Face folder where SRC is a checkpoint of Evo, and
a checkpoint of Evo otherwise, unless --to says what else. Optimizer states are not converted. The target appears whole
or not at all, and one tensor at a time is in memory.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.errors import CheckpointError, ConfigError
from evo_core.job import command, report_progress
from evo_core.storage.location import local_path

if TYPE_CHECKING:
    from torch import Tensor

    from evo_core.weights import Target, Weights

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
DTYPES = ("bfloat16", "float16", "float32", "float64")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="evo convert", description=__doc__)
    result.add_argument("source", metavar="SRC", help="folder with weights, or a hub id (owner/name)")
    result.add_argument("target", metavar="TGT", help="a new or an empty folder")
    kinds = ["evo", "internevo", "llama", "hf"]
    result.add_argument("--from", dest="from_", choices=kinds, help="what SRC must be; default: what lies there")
    result.add_argument("--to", choices=["hf", "evo", "internevo"], help="what TGT becomes")
    result.add_argument("--tokenizer", metavar="PATH", help="tokenizer to put with it; default: the one beside SRC")
    result.add_argument("--dtype", help=f"type of the weights ({', '.join(DTYPES)}); default: as they are")
    result.add_argument("--max-shard", default="10GB", metavar="SIZE", help="largest file of a Hugging Face folder")
    result.add_argument(
        "--rotary-type",
        choices=["origin", "dynamic"],
        help="whether a Hugging Face folder stretches its rotary base for long texts; default: as the model does",
    )
    result.add_argument(
        "--model-type",
        help="family to read the weights as, such as INTERNLM2_PUBLIC for a Llama; default: the nearest to SRC",
    )
    result.add_argument("--architecture", help="class of a Hugging Face folder; LlamaForCausalLM suits most models")
    result.add_argument(
        "--config", metavar="FILE", help="configuration with the `model` block, for an InternEvo folder without one"
    )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and convert; exits with 2 for a mistake of the user's."""
    arguments = parser().parse_args(argv)
    with command("evo_core.convert"):
        if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) != 0:
            return  # one process does it all
        print(convert(arguments), flush=True)


def convert(arguments: argparse.Namespace) -> str:
    """Carry out a command line; returns a line on what was done.

    Raises:
        CheckpointError, ConfigError, DataError: naming what is missing or wrong.
    """
    max_shard = size_in_bytes(arguments.max_shard)
    if arguments.dtype is not None and arguments.dtype.removeprefix("torch.") not in DTYPES:
        raise ConfigError(f"unknown type {arguments.dtype!r}", key="--dtype", hint=f"one of {', '.join(DTYPES)}")
    model = None
    if arguments.config is not None:
        from evo_core.config import load_config

        model = load_config(arguments.config).model

    import torch

    from evo_core.weights import as_model_type, cast, check_free, open_weights, write_weights

    local_path(arguments.source, "SRC")
    target = local_path(arguments.target, "TGT")
    check_free(target)
    weights = open_weights(arguments.source, arguments.from_, model=model)
    to: Target = arguments.to or ("hf" if weights.kind == "evo" else "evo")
    for option in ("architecture", "rotary_type"):
        if getattr(arguments, option) and to != "hf":
            raise ConfigError(f"is for a Hugging Face folder, not for {to}", key=f"--{option.replace('_', '-')}")
    if arguments.model_type is not None:
        weights = as_model_type(weights, arguments.model_type)
    if arguments.dtype is not None:
        weights = cast(weights, getattr(torch, arguments.dtype.removeprefix("torch.")))
    if arguments.tokenizer is not None:
        weights = _with_tokenizer(weights, local_path(arguments.tokenizer, "--tokenizer"))
    _check_tokenizer(weights)
    write_weights(
        _reporting(weights),
        target,
        to,
        max_shard=max_shard,
        architecture=arguments.architecture,
        rotary_type=arguments.rotary_type,
    )
    return _summary(weights, to, target)


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

    def read(name: str) -> Tensor:
        nonlocal done
        tensor = weights.tensors[name].read()
        check_finite([(name, tensor)], weights.folder)
        done = min(done + weights.tensors[name].nbytes, total)
        report_progress(done, total, "bytes")
        return tensor

    watched = {name: replace(tensor, read=partial(read, name)) for name, tensor in weights.tensors.items()}
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
