"""InternEvo's checkpoint folders ``<save>/<step>``, whatever layout they were written at.

``model_tp{t}_pp{p}.pt``, with isp ``model_tp{t}_wp{w}_pp{p}.pt``, of later versions ``model_wp{w}_pp{p}.pt``; a stage
counts its layers from 0, and with an interleaved pipeline a chunk's number goes before each name. Experts lie in
``model_moe_layer{l}_expert{e}_tp{t}.pt``, of later versions with isp in ``…_wp{w}.pt``. ``model_config.pt`` holds the
shape. Optimizer states are not read; how far the run was, by progress.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.checkpoint.generation_settings import read_generation
from evo_core.errors import CheckpointError
from evo_core.weights.internevo.newest import FSDP, MODEL, newest_below
from evo_core.weights.internevo.shape import shape_of
from evo_core.weights.internevo.shards import Shard, merge
from evo_core.weights.job import configuration
from evo_core.weights.lazy import Lazy
from evo_core.weights.pickles import read_settings, read_tensors
from evo_core.weights.plain import PlainForm
from evo_core.weights.plausible import check_sizes
from evo_core.weights.source import Weights
from evo_core.weights.tokenizer_files import find_tokenizer

if TYPE_CHECKING:
    from evo_core.config import ModelConfig

_EXPERT = re.compile(r"model_moe_layer(\d+)_expert(\d+)_(tp|wp)(\d+)\.pt")
_CHUNK = re.compile(r"(?:model\.)?(?:(\d+)\.)?(?:model\.)?(.+)")
_LAYER = re.compile(r"(blocks|layers)\.(\d+)\.(.+)")
MODEL_CONFIG = "model_config.pt"


def is_internevo(folder: Path) -> bool:
    """Whether this looks like a checkpoint of InternEvo, or a folder of its checkpoints."""
    return newest_below(folder) is not None


def open_internevo(folder: Path, model: ModelConfig | None = None, *, whole: bool = True) -> Weights:
    """The weights of an InternEvo checkpoint, merged over its files.

    Args:
        folder: a checkpoint, or a save folder (then its newest complete one).
        model: the `model` block, where the folder does not say the shape itself (no ``model_config.pt``).
        whole: refuse tensors that are not all of a model; see `open_weights`.

    Raises:
        CheckpointError: a file is missing or damaged, or the files are not shards of one model.
    """
    folder = newest_below(folder) or folder
    tensors = _tensors(folder)
    stated = _stated(folder, model)
    settings = shape_of(tensors, stated, folder)
    job = configuration(settings, folder / MODEL_CONFIG)
    check_sizes(job.model, [tensor.shape for tensor in tensors.values()], folder)
    plain = PlainForm(job.model).to_plain(tensors, whole=whole)
    return Weights(folder, "internevo", job, plain, find_tokenizer(folder), generation=read_generation(folder))


def _stated(folder: Path, model: ModelConfig | None) -> dict[str, Any]:
    if (folder / MODEL_CONFIG).is_file():
        stated = read_settings(folder / MODEL_CONFIG)
        return stated if model is None else stated | {"moe": model.moe.model_dump()}
    if model is None:
        raise CheckpointError(
            f"has no {MODEL_CONFIG}, which says how many heads there are",
            file=folder,
            hint="name a configuration with its `model` block: --config FILE",
        )
    return model.model_dump(exclude_unset=True)


def _tensors(folder: Path) -> dict[str, Lazy]:
    """Every tensor of the model by its own name, merged over tensor, weight and pipeline ranks."""
    if any(FSDP.fullmatch(path.name) for path in folder.iterdir()):
        raise CheckpointError("was written with fsdp, which cannot be merged", file=folder)
    by_place: dict[tuple[int, int], list[Shard]] = {}
    for rank, path in _model_files(folder):
        for (chunk, name), tensor in _split_names(read_tensors(path)).items():
            here = by_place.setdefault((chunk, rank.stage), [])
            shard = next((shard for shard in here if shard.file == path), None)
            if shard is None:
                here.append(shard := Shard(path, rank.tensor, rank.weight, {}))
            shard.tensors[name] = tensor
    merged: dict[str, Lazy] = {}
    layers = 0
    for place in sorted(by_place):  # chunk after chunk, and in each stage after stage: the order of the layers
        found = merge(by_place[place], folder)
        highest = -1
        for name, tensor in found.items():
            match = _LAYER.fullmatch(name)
            if match:
                highest = max(highest, int(match[2]))
                name = f"{match[1]}.{layers + int(match[2])}.{match[3]}"
            merged[name] = tensor
        layers += highest + 1
    return merged | _experts(folder)


@dataclass(frozen=True)
class _Rank:
    """Which ranks a file is of; None of an axis that its name leaves out."""

    stage: int
    tensor: int | None
    weight: int | None

    @property
    def place(self) -> tuple[int, int, int]:
        return self.stage, self.tensor or 0, self.weight or 0

    @property
    def file(self) -> str:
        axes = (("tp", self.tensor), ("wp", self.weight), ("pp", self.stage))
        return f"model_{'_'.join(f'{axis}{rank}' for axis, rank in axes if rank is not None)}.pt"


def _model_files(folder: Path) -> list[tuple[_Rank, Path]]:
    files = []
    for path in folder.iterdir():
        if match := MODEL.fullmatch(path.name):
            tensor, weight = (None if match[axis] is None else int(match[axis]) for axis in ("tensor", "weight"))
            files.append((_Rank(int(match["stage"]), tensor, weight), path))
    if not files:
        raise CheckpointError(
            "holds no file model_tp<t>_pp<p>.pt, model_tp<t>_wp<w>_pp<p>.pt or model_wp<w>_pp<p>.pt", file=folder
        )
    files.sort(key=lambda file: file[0].place)
    first = files[0]
    for rank, path in files:
        if (rank.tensor is None, rank.weight is None) != (first[0].tensor is None, first[0].weight is None):
            raise CheckpointError(
                f"holds the weights of two runs: {first[1].name} and {path.name} are of other layouts",
                file=folder,
                hint="move the files of one of them elsewhere",
            )
    stages = {rank.stage for rank, _ in files}
    ranks = {stage: {replace(r, stage=0) for r, _ in files if r.stage == stage} for stage in stages}
    for stage in range(max(stages) + 1):
        wanted = ranks[max(stages)]
        if lacking := sorted(wanted - ranks.get(stage, set()), key=lambda rank: rank.place):
            raise CheckpointError(f"lacks {replace(lacking[0], stage=stage).file}", file=folder)
    return files


def _split_names(tensors: Mapping[str, Lazy]) -> dict[tuple[int, str], Lazy]:
    """Each tensor by chunk and name, without the prefixes of old and of interleaved ones."""
    split = {}
    for name, tensor in tensors.items():
        match = _CHUNK.fullmatch(name)
        assert match is not None
        split[int(match[1] or 0), match[2]] = tensor
    return split


def _experts(folder: Path) -> dict[str, Lazy]:
    """The experts' tensors; the file's name says the layer and the expert, its keys only what it is."""
    by_expert: dict[tuple[int, int], list[Shard]] = {}
    for path in sorted(folder.iterdir()):
        if match := _EXPERT.fullmatch(path.name):
            named = {
                name.rpartition("wrapped_experts.")[2].partition(".")[2]: t for name, t in read_tensors(path).items()
            }
            gathered, rank = match[3] == "wp", int(match[4])
            shard = Shard(path, None, rank, named) if gathered else Shard(path, rank, None, named)
            by_expert.setdefault((int(match[1]), int(match[2])), []).append(shard)
    merged: dict[str, Lazy] = {}
    for (layer, expert), shards in by_expert.items():
        shards.sort(key=lambda shard: (shard.tensor or 0, shard.weight or 0))
        prefix = f"blocks.{layer}.mlp.moe_layer.experts.wrapped_experts.{expert}."
        merged |= {prefix + name: tensor for name, tensor in merge(shards, folder, mlp="").items()}
    return merged
