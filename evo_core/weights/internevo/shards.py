"""How InternEvo cuts tensors over tensor- and weight-parallel ranks, undone.

Tensor parallel: query, key, value, gate, up and head are cut by output features (INTERNLM's Wqkv in each of its three
parts), the attention's output and down by input features, the embedding by hidden size or by vocabulary; norms and
output biases are whole. isp cuts every linear layer of a block by output features over the weight ranks instead; in
later versions embedding and head too are cut over these.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evo_core.errors import CheckpointError
from evo_core.weights.lazy import Lazy, joined, stacked

log = logging.getLogger(__name__)


@dataclass
class Shard:
    """What one file holds of a stage: tensors by name, and its tensor and weight rank.

    Without isp there is no weight rank; with isp as later versions have it there is no tensor rank.
    """

    file: Path
    tensor: int | None
    weight: int | None
    tensors: dict[str, Lazy]


_BLOCK_LINEAR = re.compile(
    r"(?:blocks|layers)\.\d+\..*\b(Wqkv|wqkv|wq|wk|wv|out_proj|wo|w1|w2|w3|fc1|fc2)\.(weight|bias)"
)
_EMBEDDING = ("embedding.weight", "tok_embeddings.weight")
_HEAD = ("head.weight", "output.weight")


def merge(shards: Sequence[Shard], folder: Path, *, mlp: str = "mlp.") -> dict[str, Lazy]:
    """The whole tensors of one stage, by InternEvo's names in their present form.

    Args:
        shards: of all its ranks, in the order of tensor and then weight ranks.
        mlp: "" where the names are those inside an MLP (an expert's file).

    Raises:
        CheckpointError: a rank is missing, or holds other tensors than the rest.
    """
    shards = [Shard(s.file, s.tensor, s.weight, _present_names(s.tensors)) for s in shards]
    names = dict.fromkeys(name for shard in shards for name in shard.tensors)
    isp = shards[0].weight is not None
    by_weight = _ranks(shards, lambda shard: shard.weight or 0, "wp", folder) if isp else []
    by_tensor = by_weight
    if shards[0].tensor is not None:
        by_tensor = _ranks(shards, lambda shard: shard.tensor or 0, "tp", folder)
    merged = {}
    for name in names:
        linear = _BLOCK_LINEAR.fullmatch(name if mlp else f"blocks.0.{name}")
        if linear and isp:
            merged[name] = stacked(_parts(name, by_weight, folder), 0)
        elif linear:
            merged[name] = _over_tensor_ranks(name, linear[1], linear[2], by_tensor, folder)
        elif name in _HEAD:
            merged[name] = stacked(_parts(name, by_tensor, folder), 0)
        elif name in _EMBEDDING:
            merged[name] = _embedding(name, by_tensor, folder)
        else:
            merged[name] = next(shard.tensors[name] for shard in shards if name in shard.tensors)
    return _swapped_back(merged)


def _over_tensor_ranks(name: str, layer: str, kind: str, ranks: Sequence[Shard], folder: Path) -> Lazy:
    by_input = layer in ("out_proj", "wo", "w2", "fc2")
    if by_input and kind == "bias":
        return ranks[0].tensors[name]  # added once, by the first rank
    parts = _parts(name, ranks, folder)
    if layer == "Wqkv":  # each rank's rows are q, k and v of its own heads

        def join(tensors: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([tensor.unflatten(0, (3, -1)) for tensor in tensors], dim=1).flatten(0, 1)

        return parts[0] if len(parts) == 1 else joined(parts, join)
    if layer in ("w2", "w3"):
        return _down_or_up(name, parts, ranks, folder)
    return stacked(parts, 1 if by_input else 0)


def _down_or_up(name: str, parts: list[Lazy], ranks: Sequence[Shard], folder: Path) -> Lazy:
    """w2 and w3 by what they are: before version 0.3 w2 was up and w3 down, and their shapes tell."""
    gate = ranks[0].tensors.get(re.sub(r"w[23]\.weight$", "w1.weight", name))
    is_down = gate is not None and parts[0].shape == gate.shape[::-1]
    if gate is not None and gate.shape[0] == gate.shape[1]:
        is_down = name.endswith("w2.weight")
        if re.search(r"\b0\.mlp\.w2\.weight$", name):
            log.warning(
                "%s: the shards of the MLP are square, so their shapes do not tell w2 from w3: taken as down and up, "
                "as versions from 0.3.0 write them",
                folder,
            )
    return stacked(parts, 1 if is_down else 0)


def _swapped_back(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """Give up and down their present names, w3 and w2, where the whole shapes say that they are the other way."""
    result = dict(tensors)
    for name, gate in tensors.items():
        if not name.endswith("w1.weight"):
            continue
        stem = name.removesuffix("w1.weight")
        w2, w3 = tensors.get(f"{stem}w2.weight"), tensors.get(f"{stem}w3.weight")
        wide = gate.shape[0] != gate.shape[1]
        if w2 is not None and w3 is not None and wide and w2.shape == gate.shape and w3.shape == gate.shape[::-1]:
            result[f"{stem}w2.weight"], result[f"{stem}w3.weight"] = w3, w2
    return result


def _embedding(name: str, ranks: Sequence[Shard], folder: Path) -> Lazy:
    """Cut by hidden size or by vocabulary: the norm, or another tensor that is whole there, says the hidden size."""
    parts = _parts(name, ranks, folder)
    hidden = next(
        (t.shape[0] for shard in ranks for n, t in shard.tensors.items() if "norm" in n and len(t.shape) == 1), None
    )
    return stacked(parts, 0 if parts[0].shape[1] == hidden else 1)


def _parts(name: str, ranks: Sequence[Shard], folder: Path) -> list[Lazy]:
    for shard in ranks:
        if name not in shard.tensors:
            raise CheckpointError(f"lacks {name}, which other ranks have", file=shard.file)
    return [shard.tensors[name] for shard in ranks]


def _ranks(shards: Sequence[Shard], rank: Callable[[Shard], int], name: str, folder: Path) -> list[Shard]:
    """One shard of each rank, in order, none missing."""
    found: dict[int, Shard] = {}
    for shard in shards:
        found.setdefault(rank(shard), shard)
    lacking = next((number for number in range(max(found)) if number not in found), None)
    if lacking is not None:
        raise CheckpointError(f"has no model file of {name}{lacking}", file=folder)
    return [found[number] for number in sorted(found)]


def _present_names(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """The vocabulary-parallel embedding has a name of its own; buffers of the rotary embedding are left out."""
    return {
        re.sub(r"\b(embedding|tok_embeddings)\.word_embeddings\.weight$", r"\1.weight", name): tensor
        for name, tensor in tensors.items()
        if not name.endswith("inv_freq")
    }
