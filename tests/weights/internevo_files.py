"""InternEvo's checkpoint files, cut from whole tensors by the rules its documentation and code state.

Nothing here is shared with the reader: shards are slices written out by name.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def part(x: Tensor, rank: int, size: int, dim: int = 0) -> Tensor:
    """A rank's even share along a dimension, as a tensor of its own."""
    width = x.shape[dim] // size
    assert width * size == x.shape[dim]
    return x.narrow(dim, rank * width, width).clone()


def tensor_shard(name: str, x: Tensor, rank: int, size: int) -> Tensor | None:
    """What tensor rank `rank` of `size` holds of a tensor (modes mtp, msp, fsp)."""
    if "Wqkv" in name:
        third = x.shape[0] // 3
        return torch.cat([part(x[n * third : (n + 1) * third], rank, size) for n in range(3)])
    if name.endswith(("out_proj.bias", "wo.bias")):
        return x.clone() if rank == 0 else None
    if name.endswith(("out_proj.weight", "wo.weight", "w2.weight", "embedding.weight", "tok_embeddings.weight")):
        return part(x, rank, size, dim=1)
    if name.endswith(("head.weight", "output.weight")) or any(
        f".{layer}." in name for layer in ("wqkv", "wq", "wk", "wv", "w1", "w3")
    ):
        return part(x, rank, size)
    return x.clone()


def stages(layers: int, pipeline: int, chunks: int = 1) -> list[list[range]]:
    """The layers of each stage's chunks: even, with the remainder on the last stages."""
    result: list[list[range]] = [[] for _ in range(pipeline)]
    per_chunk = layers // chunks
    for chunk in range(chunks):
        first = chunk * per_chunk
        for stage in range(pipeline):
            count = per_chunk // pipeline + (stage >= pipeline - per_chunk % pipeline)
            result[stage].append(range(first, first + count))
            first += count
    return result


def of_stage(state: State, layers: range, *, first: bool, last: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a run of layers, counted from 0, with the embedding on the first and norm and head on the last."""
    for name, tensor in state.items():
        stem, _, rest = name.partition(".")
        if stem in ("blocks", "layers"):
            number, _, inner = rest.partition(".")
            if int(number) in layers:
                yield f"{stem}.{int(number) - layers.start}.{inner}", tensor
        elif stem in ("embedding", "tok_embeddings"):
            if first:
                yield name, tensor
        elif last:
            yield name, tensor


def write_tensor_parallel(
    state: State, folder: Path, layers: int, *, tensor: int, pipeline: int, chunks: int = 1, prefix: str = ""
) -> None:
    """``model_tp{t}_pp{p}.pt``, experts in files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    every = stages(layers, pipeline, chunks)
    for p, own in enumerate(every):
        for t in range(tensor):
            content: dict[str, Tensor] = {}
            for chunk, run in enumerate(own):
                first, last = run.start == 0, run.stop == layers
                for name, whole in of_stage(state, run, first=first, last=last):
                    shard = tensor_shard(name, whole, t, tensor)
                    if shard is None:
                        continue
                    if "wrapped_experts" in name:
                        expert = name.split("wrapped_experts.")[1].split(".")[0]
                        layer = run.start + int(name.split(".")[1])
                        file = folder / f"model_moe_layer{layer}_expert{expert}_tp{t}.pt"
                        torch.save((torch.load(file) if file.exists() else {}) | {name: shard}, file)
                    else:
                        content[(f"{chunk}." if chunks > 1 else "") + prefix + name] = shard
            torch.save(content, folder / f"model_tp{t}_pp{p}.pt")
            torch.save({"embedding": [1, 2]}, folder / f"topo_tp{t}_pp{p}.json")


def write_isp(state: State, folder: Path, layers: int, *, tensor: int, weight: int, pipeline: int) -> None:
    """``model_tp{t}_wp{w}_pp{p}.pt``: rank r of a stage is tensor rank r % tensor and weight rank r % weight."""
    folder.mkdir(parents=True, exist_ok=True)
    for p, (run,) in enumerate(stages(layers, pipeline)):
        for rank in range(max(tensor, weight)):
            t, w = rank % tensor, rank % weight
            content = {}
            for name, whole in of_stage(state, run, first=run.start == 0, last=run.stop == layers):
                in_block = name.startswith(("blocks.", "layers."))
                if in_block and "norm" not in name:
                    content[name] = part(whole, w, weight)
                else:
                    shard = tensor_shard(name, whole, t, tensor)
                    assert shard is not None
                    content[name] = shard
            torch.save(content, folder / f"model_tp{t}_wp{w}_pp{p}.pt")
            torch.save({}, folder / f"topo_tp{t}_wp{w}_pp{p}.json")


def write_later_isp(state: State, folder: Path, layers: int, *, weight: int, pipeline: int) -> None:
    """``model_wp{w}_pp{p}.pt``: embedding and head are cut over the weight ranks too, experts in files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for p, (run,) in enumerate(stages(layers, pipeline)):
        for w in range(weight):
            content = {}
            for name, whole in of_stage(state, run, first=run.start == 0, last=run.stop == layers):
                shard = part(whole, w, weight, dim=int("embed" in name)) if is_gathered(name) else whole.clone()
                if "wrapped_experts" in name:
                    expert = name.split("wrapped_experts.")[1].split(".")[0]
                    layer = run.start + int(name.split(".")[1])
                    file = folder / f"model_moe_layer{layer}_expert{expert}_wp{w}.pt"
                    torch.save((torch.load(file) if file.exists() else {}) | {name: shard}, file)
                else:
                    content[name] = shard
            torch.save(content, folder / f"model_wp{w}_pp{p}.pt")
            torch.save({}, folder / f"topo_wp{w}_pp{p}.json")


def is_gathered(name: str) -> bool:
    """Whether later versions cut a tensor over the weight ranks: all but norms and what routes tokens."""
    return not any(whole in name for whole in ("norm", "gate.wg", "coefficient"))


def write_context(folder: Path, *, batches: int, updates: int, tokens: int, **changes: Any) -> None:
    """``context.pt`` after so many batches: the number of the last one is in it, and the number of updates."""
    context = {
        "batch_count": batches - 1,
        "num_consumed_samples_in_epoch": 8 * batches,
        "num_consumed_tokens": tokens,
        "inf_nan_skip_batches": batches - updates,
        "step_count": updates,
        "tensorboard_folder": "RUN/7b/tensorboard",
    }
    torch.save({name: value for name, value in (context | changes).items() if value is not None}, folder / "context.pt")


def write_scheduler(
    folder: Path,
    *,
    position: int,
    total_steps: int,
    warmup: int,
    lr: float,
    eta_min: float,
    name: str = "schedulder.pt",
) -> None:
    """The state of the two schedulers in each other: the outer one stands still when the inner one has begun."""
    finished = position >= warmup
    inner = {
        "T_max": total_steps - warmup,
        "eta_min": eta_min,
        "base_lrs": [lr],
        "last_epoch": position - warmup if finished else 0,
        "verbose": False,
        "_step_count": position - warmup + 1 if finished else 1,
        "_get_lr_called_within_step": False,
        "_last_lr": [lr],
    }
    outer = {
        "_init_steps": 0,
        "_warmup_steps": warmup,
        "warmup_epochs": warmup,
        "finished": finished,
        "base_lrs": [lr],
        "last_epoch": min(position, warmup),
        "verbose": False,
        "_step_count": min(position, warmup) + 1,
        "_get_lr_called_within_step": False,
        "_last_lr": [lr],
        "after_scheduler_type": "CosineAnnealingLR",
        "after_scheduler_dict": inner,
    }
    torch.save(outer, folder / name)


def write_model_config(folder: Path, settings: Mapping[str, Any]) -> None:
    """``model_config.pt`` as InternEvo leaves it: a dictionary of a class of its own, a dtype in it."""
    name = "internlm.core.context.parallel_context"
    packages = {".".join(name.split(".")[:n]): types.ModuleType(".".join(name.split(".")[:n])) for n in range(1, 5)}
    config = type("Config", (dict,), {"__module__": name, "__qualname__": "Config"})
    packages[name].Config = config  # type: ignore[attr-defined]
    sys.modules.update(packages)
    try:
        torch.save(config({"dtype": torch.float32, **settings}), folder / "model_config.pt")
    finally:
        for package in packages:
            del sys.modules[package]
