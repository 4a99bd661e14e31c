"""A job of the user's made small enough for float64 on a laptop, with all that makes its model and layout what it is.

The family and every flag stay. Sizes shrink: what must divide still does, key/value heads are shared by as many queries
and repeated over tensor ranks where they were, widths keep their ratios. First weights grow as the width shrinks, so
that activations keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evo_core.config import ModelConfig
from evo_core.errors import ConfigError
from evo_core.nearest import divisors
from evo_core.parity.job import MICRO_BSZ, SEQ_LEN, STDS, Settings
from evo_core.parity.layouts import OWN, SIZES, Layout, Row

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

_LAYERS, _HIDDEN, _VOCAB, _EXPERTS, _GROUP = 4, 64, 96, 4, 8
"""What is left of each, about or at most; _GROUP are queries that share a key/value head."""

_KEPT_OF_DATA = ("pack_sample_into_one", "use_packed_dataset", "mask_token_zero")
_WAY_OF_MODEL = ("checkpoint", "compile", "embed_split_hidden", "parallel_output")
"""How the job carries its model out: in the row of its own layout alone."""


@dataclass(frozen=True)
class CutDown:
    """A small job.

    Attributes:
        settings: its blocks but for data and schedule, which are `job.training`'s.
        row: its own layout.
        notes: a line for each thing that was made smaller.
    """

    settings: Settings
    row: Row
    notes: tuple[str, ...]


def cut_down(cfg: TrainConfig, ranks: int) -> CutDown:
    """The user's job on so many ranks.

    Raises:
        ConfigError: its model type is the user's own.
    """
    model = cfg.model
    if not isinstance(model, ModelConfig):
        raise ConfigError(
            f"{cfg.model_type} is a model type of your own, and what makes it smaller is not known here",
            key="model_type",
            hint="compare losses of a short run at both layouts instead",
        )
    layout = _layout(cfg, ranks)
    layers = _layers(model.num_layers, cfg.parallel.pipeline.size, layout)
    sizes = {"num_layers": layers, **_sizes(model, cfg.parallel.tensor.size, layout.parallel)}
    scale = math.sqrt(max(model.hidden_size / sizes["hidden_size"], 1.0))
    left_out = {"model_type", "use_fp32_norm", "moe", "dtype", "num_chunks", *_WAY_OF_MODEL, *STDS, *sizes}
    kept = model.model_dump(exclude=left_out)
    settings: Settings = {
        "seed": cfg.seed,
        "model_type": cfg.model_type,
        "use_fp32_norm": cfg.use_fp32_norm,
        "model": {**kept, **{name: getattr(model, name) * scale for name in STDS}, **sizes},
        "moe": cfg.moe.model_dump(),
        "loss": cfg.loss.model_dump(),
        "optimizer": cfg.optimizer.model_dump(),
        "adam": cfg.adam.model_dump(exclude={"lr", "adam_eps"}),
        "data": {name: getattr(cfg.data, name) for name in _KEPT_OF_DATA},
    }
    way: Settings = {
        "model": {name: getattr(model, name) for name in _WAY_OF_MODEL},
        "hybrid_zero_optimizer": {"overlap_sync_grad": cfg.hybrid_zero_optimizer.overlap_sync_grad},
    }
    return CutDown(settings, Row(OWN, layout, way=way), tuple(_notes(cfg, sizes, layout)))


def _layout(cfg: TrainConfig, ranks: int) -> Layout:
    """The job's layout where it fits the ranks; else the nearest one with as many of its kinds of parallelism as there
    are ranks for."""
    said = cfg.parallel
    stages, tensor, weight, zero1 = said.pipeline.size, said.tensor.size, said.weight.size, said.zero1.size
    fitting = [
        (p, t, w) for p in _up_to(stages, ranks) for t in _up_to(tensor, ranks // p) for w in _up_to(weight, ranks // p)
    ]

    def alike(p: int, t: int, w: int) -> int:
        """Ranks that hold the same part of a block's weights, among which their optimizer's state is shared."""
        return ranks // (p * (w if said.tensor.mode == "isp" else t))

    wanted = stages, tensor, weight
    if wanted in fitting and not (zero1 > 0 and alike(*wanted) % zero1):
        size = wanted
    else:

        def kinds(p: int, t: int, w: int) -> int:
            return (p > 1) + (t > 1) + (w > 1) + (alike(p, t, w) > 1 and zero1 != 1)

        size = max(fitting, key=lambda each: (kinds(*each), math.prod(each), each[0]))
    share = zero1 if zero1 <= 0 else max(_up_to(zero1, alike(*size)))
    block = said.model_dump()
    for name, small in zip(("pipeline", "tensor", "weight", "zero1"), (*size, share), strict=True):
        block[name]["size"] = small
    if said.expert.size > 1:
        most = math.gcd(ranks // (size[0] * size[1]), _experts(cfg.model))
        block["expert"]["size"] = max(_up_to(said.expert.size, most))
    return Layout(OWN, ranks, block, chunks=getattr(cfg.model, "num_chunks", 1) if size[0] > 1 else 1)


def _up_to(size: int, ranks: int) -> list[int]:
    """The sizes of at most so many that divide the ranks."""
    return [each for each in divisors(ranks) if each <= size]


def _sizes(model: ModelConfig, tensor: int, small: Mapping[str, Any]) -> dict[str, Any]:
    """The small model's sizes but for its layers, by key.

    Args:
        tensor: ranks that share each layer, or the sequence, of the large one.
        small: the `parallel` block of the small one.
    """
    small_tensor, weight = small["tensor"]["size"], small["weight"]["size"]
    heads, kv_heads = _heads(model, tensor, small_tensor)
    inner = model.num_attention_heads * model.head_dim / model.hidden_size  # where heads are wider than the stream
    head_dim = min(2 * max(2, round(_HIDDEN * min(inner, 2.0) / heads / 2)), model.head_dim)
    hidden = heads * head_dim if inner == 1 else max(4, 4 * round(heads * head_dim / inner / 4))
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_kv_attention_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": min(model.vocab_size, _VOCAB),
        "multiple_of": math.lcm(min(model.multiple_of, 4), weight),
        "num_experts": _experts(model),
    }


def _experts(model: ModelConfig) -> int:
    return min(model.num_experts, max(_EXPERTS, model.moe.top_k))


def _layers(layers: int, stages: int, layout: Layout) -> int:
    """A layer for every stage, of each chunk as many, and stages of unlike size where they were."""
    small, of_chunk = layout.parallel["pipeline"]["size"], layers // layout.chunks
    kept = max(small, _LAYERS // layout.chunks)
    if of_chunk % stages and kept % small == 0:
        kept += 1
    return layout.chunks * min(kept, of_chunk)


def _heads(model: ModelConfig, tensor: int, small_tensor: int) -> tuple[int, int]:
    """Query and key/value heads. As many queries share a key/value head as did, and where tensor ranks had key/value
    heads of their own, or several had the same, they still do."""
    kv_heads = model.num_kv_attention_heads
    group = min(model.num_attention_heads // kv_heads, _GROUP)
    if kv_heads < tensor:
        small = max(1, small_tensor * kv_heads // tensor)
    else:
        small = max(small_tensor, min(kv_heads, 2))
        while group * small % max(SIZES):  # so that the other layouts can have the model too
            small *= 2
    return group * small, small


def _notes(cfg: TrainConfig, sizes: dict[str, Any], layout: Layout) -> list[str]:
    """What was made smaller, from what to what."""
    was = {f"model.{name}": (getattr(cfg.model, name), value) for name, value in sizes.items()}
    was |= {"data.seq_len": (cfg.data.seq_len, SEQ_LEN), "data.micro_bsz": (cfg.data.micro_bsz, MICRO_BSZ)}
    for block in ("pipeline", "tensor", "weight", "zero1", "expert"):
        was[f"parallel.{block}.size"] = (getattr(cfg.parallel, block).size, layout.parallel[block]["size"])
    changed = [f"{key} {before} -> {after}" for key, (before, after) in was.items() if before != after]
    return [*changed, "random documents, five steps at a rate of 0.001 (adam_eps 1e-4), in place of data and schedule"]
