"""Meta's llama folders: ``consolidated.NN.pth``, one file per tensor-parallel rank, and ``params.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo_core.checkpoint.generation_settings import read_generation
from evo_core.checkpoint.json_file import read_json
from evo_core.errors import CheckpointError
from evo_core.weights.job import configuration, width_of_mlp
from evo_core.weights.lazy import Lazy, stacked
from evo_core.weights.pickles import read_tensors
from evo_core.weights.plain import PlainForm
from evo_core.weights.plausible import check_sizes
from evo_core.weights.source import Weights, dtype_setting
from evo_core.weights.tokenizer_files import find_tokenizer

PARAMS = "params.json"

_COLUMNS = ("wq", "wk", "wv", "w1", "w3", "output")
"""Split by output features; wo and w2 by input features, the embedding by one or the other."""


def is_llama(folder: Path) -> bool:
    """Whether this looks like a folder of Meta's."""
    return (folder / PARAMS).is_file() and bool(_files(folder))


def open_llama(folder: Path, *, whole: bool = True) -> Weights:
    """The weights of one of Meta's folders, merged over its files.

    Args:
        whole: refuse tensors that are not all of a model; see `open_weights`.

    Raises:
        CheckpointError: a file is missing or damaged, or the files are not shards of one model.
    """
    params = _params(folder / PARAMS)
    shards = [read_tensors(path) for path in _files(folder)]
    for path, shard in zip(_files(folder), shards, strict=True):
        if shard.keys() != shards[0].keys():
            raise CheckpointError("holds other tensors than the first file", file=path)
    tensors = {
        name: _merged(name, [shard[name] for shard in shards], int(params["dim"]), folder, whole=whole)
        for name in shards[0]
        if name != "rope.freqs"  # follows from the settings
    }
    job = configuration(_settings(params, tensors, folder), folder / PARAMS)
    check_sizes(job.model, [tensor.shape for tensor in tensors.values()], folder / PARAMS)
    plain = PlainForm(job.model).to_plain(tensors, whole=whole)
    beside = (folder, folder.parent)
    return Weights(folder, "llama", job, plain, find_tokenizer(*beside), generation=read_generation(*beside))


def _settings(params: Mapping[str, Any], tensors: Mapping[str, Lazy], folder: Path) -> dict[str, Any]:
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if name not in tensors:
            raise CheckpointError(f"lacks {name}", file=folder)
    scaled = bool(params.get("use_scaled_rope"))
    settings: dict[str, Any] = {
        "model_type": "LLAMA3" if scaled or params.get("rope_theta") == 500000 else "LLAMA2",
        "num_layers": params["n_layers"],
        "hidden_size": params["dim"],
        "num_attention_heads": params["n_heads"],
        "num_kv_attention_heads": params.get("n_kv_heads") or params["n_heads"],
        "vocab_size": tensors["tok_embeddings.weight"].shape[0],  # params.json of the first ones says -1
        **width_of_mlp(int(params["dim"]), tensors["layers.0.feed_forward.w1.weight"].shape[0]),
        "no_bias": True,
        "layer_norm_epsilon": params.get("norm_eps", 1e-5),
        "rope_base": params.get("rope_theta") or 10000.0,
        "qk_interleaved": True,
        "dtype": dtype_setting(tensors, folder),
    }
    if scaled:  # the numbers that the published code has as constants
        settings["rope_scaling"] = {
            "factor": params.get("rope_scaling_factor") or 8.0,
            "high_freq_factor": params.get("rope_high_freq_factor") or 4.0,
        }
    return settings


def _merged(name: str, parts: list[Lazy], dim: int, folder: Path, *, whole: bool) -> Lazy:
    """One tensor from the shards of all ranks."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    if module in _COLUMNS:
        return stacked(parts, 0)
    if module in ("wo", "w2"):
        return stacked(parts, 1)
    if module == "tok_embeddings":  # Llama 2 splits it by features, Llama 3 by vocabulary
        return stacked(parts, 0 if parts[0].shape[1] == dim else 1)
    if "norm" in module or not whole:  # nobody reads what a llama does not have
        return parts[0]
    raise CheckpointError(f"has {name}, which a llama does not have", file=folder)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("consolidated.*.pth"))


def _params(path: Path) -> dict[str, Any]:
    params = read_json(path)
    try:
        return params | {name: int(params[name]) for name in ("dim", "n_layers", "n_heads")}
    except (ArithmeticError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot be read: {error!r}", file=path) from error
