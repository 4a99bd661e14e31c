"""Hugging Face folders: ``config.json`` with safetensors (or ``pytorch_model*.bin``) files, and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from evo_core.checkpoint.generation_settings import as_eos_token_id, read_generation, write_generation
from evo_core.checkpoint.inside import inside
from evo_core.checkpoint.json_file import read_json, write_json
from evo_core.errors import CheckpointError
from evo_core.placement import Rectangle
from evo_core.weights.hf.config import architecture_of, config_of, model_settings
from evo_core.weights.hf.names import ARCHITECTURES, OF_MODEL_TYPE
from evo_core.weights.job import configuration
from evo_core.weights.lazy import Lazy
from evo_core.weights.pickles import read_tensors
from evo_core.weights.plain import EMBEDDING, HEAD
from evo_core.weights.plausible import check_sizes
from evo_core.weights.safetensors_file import read_safetensors, write_safetensors
from evo_core.weights.source import Weights, dtype_setting
from evo_core.weights.tokenizer_files import (
    copy_tokenizer,
    describe_tokenizer,
    find_tokenizer,
    put_begin_token,
    special_ids,
)

CONFIG = "config.json"
RotaryType = Literal["origin", "dynamic"]


def is_hf(folder: Path) -> bool:
    """Whether this looks like a Hugging Face folder with weights."""
    return (folder / CONFIG).is_file() and bool(_files(folder))


def open_hf(folder: Path) -> Weights:
    """The weights of a Hugging Face folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is of a kind that is not supported.
    """
    config = read_json(folder / CONFIG)
    architecture = architecture_of(config, folder / CONFIG)
    tensors = _tensors(folder)
    settings = model_settings(config, architecture, folder / CONFIG)
    settings["dtype"] = dtype_setting(tensors, folder)
    job = configuration(settings, folder / CONFIG)
    check_sizes(job.model, [tensor.shape for tensor in tensors.values()], folder / CONFIG)
    plain = architecture.to_plain(tensors, job.model)
    if job.model.tie_word_embeddings and HEAD in plain:
        # Some writers store it all the same, or it alone; where it is another matrix, it is not tied.
        if EMBEDDING not in plain:
            plain[EMBEDDING] = plain.pop(HEAD)
        elif torch.equal(plain[HEAD].read(), plain[EMBEDDING].read()):
            del plain[HEAD]
        else:
            job = configuration(settings | {"tie_word_embeddings": False}, folder / CONFIG)
    return Weights(folder, "hf", job, plain, find_tokenizer(folder), generation=read_generation(folder))


def write_hf(
    weights: Weights,
    folder: Path,
    *,
    max_shard: int,
    architecture: str | None = None,
    rotary_type: RotaryType | None = None,
) -> None:
    """Write a Hugging Face folder: config, shards with their index, tokenizer, generation settings.

    Args:
        folder: an empty one.
        max_shard: bytes of a file, at most (a single larger tensor has a file of its own).
        architecture: name of the class to write for; None takes the one of the model type.
        rotary_type: whether long texts stretch the rotary base; None leaves it as the model has it.

    Raises:
        CheckpointError: the class has no place for what the model does.
    """
    cfg = weights.model
    if rotary_type is not None:
        cfg = cfg.model_copy(update={"use_dynamic_ntk_rope": rotary_type == "dynamic"})
    target = OF_MODEL_TYPE[cfg.model_type] if architecture is None else _named(architecture)
    plain = dict(weights.tensors)
    if cfg.norm_head:
        plain[HEAD] = _normed(plain[HEAD])  # no class has the setting, but the matrix that it makes will do
    tokenizer = None if weights.tokenizer is None else copy_tokenizer(weights.tokenizer, folder)
    special = special_ids(tokenizer)
    own = [special["eos_token_id"]] if "eos_token_id" in special else []
    special |= (ending := as_eos_token_id([*weights.generation.get("eos_token_id", ()), *own]))
    longest = cfg.max_position_embeddings
    if not cfg.use_dynamic_ntk_rope:
        longest = max(longest, weights.config.data.seq_len)
    dtype = dtype_setting(plain, weights.folder).removeprefix("torch.")
    settings = config_of(cfg, target, dtype=dtype, max_position=longest, special=special)

    shards = _split(target.from_plain(plain, cfg), max_shard)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard)
        index |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})
    if tokenizer is not None:
        describe_tokenizer(tokenizer, folder)
        if weights.trained_here:
            put_begin_token(folder)
    write_generation(folder, {**(weights.generation or {"_from_model_config": True, **special}), **ending})
    write_json(folder / CONFIG, settings)


def _named(architecture: str) -> Any:
    from evo_core.config import suggest

    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"unknown architecture {architecture!r}{suggest(architecture, ARCHITECTURES)}",
            hint=f"one of {', '.join(ARCHITECTURES)}",
        )
    return ARCHITECTURES[architecture]


def _tensors(folder: Path) -> dict[str, Lazy]:
    """Every tensor of the folder's weight files, each of which must be there."""
    tensors: dict[str, Lazy] = {}
    for path in _files(folder):
        if not path.is_file():
            raise CheckpointError("is named by the index and is not there", file=path)
        tensors |= read_safetensors(path) if path.suffix == ".safetensors" else read_tensors(path)
    return tensors


def _files(folder: Path) -> list[Path]:
    """The weight files: safetensors before pickles; one file of all, else as the index says, or else by name.

    In the order of transformers: beside one file of all, an index is left from shards that were there before.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return _indexed(folder, index)
        if found := sorted(folder.glob(f"{stem}-*-of-*.{suffix}")):
            return found
    return []


def _indexed(folder: Path, index: Path) -> list[Path]:
    """The files that an index names, which are in its own folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, Mapping):
        raise CheckpointError("does not name the file of each tensor", file=index, key="weight_map")
    return sorted({inside(folder, name, file=index) for name in names.values()})


def _split(tensors: Mapping[str, Lazy], limit: int) -> list[dict[str, Lazy]]:
    """Tensors in order, in as few files of at most so many bytes as that order allows."""
    shards: list[dict[str, Lazy]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _normed(head: Lazy) -> Lazy:
    def read(where: Rectangle) -> torch.Tensor:
        weight = head.part(where.along(1, 0, head.shape[1]))
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        rows = F.normalize(wide, dim=-1).to(weight.dtype)
        return rows.narrow(1, where.offsets[1], where.sizes[1])

    return replace(head, source=read)
