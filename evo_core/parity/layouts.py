"""What can be run: layouts of 2 and of 4 ranks, each with the small model and with those that differ from it.

One list, `ROWS`. Another kind of parallelism is more entries of `LAYOUTS`; another thing that a model may have, one of
`MODELS`; another way of carrying a job out, one of `WAYS`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from evo_core.config.resolve import merge
from evo_core.config.suggest import suggest
from evo_core.errors import ConfigError
from evo_core.parity.job import LAYERS, MICRO_BATCHES, MICRO_BSZ, SEQ_LEN, Settings

SIZES = (2, 4)
"""Numbers of ranks that there are layouts for."""

OWN = "config"
"""The name of a configuration's own layout."""


@dataclass(frozen=True)
class Layout:
    """How so many ranks share the work.

    Attributes:
        name: as typed: its parallel sizes but 1, then ``zero`` with the ranks that share the optimizer's state, or
            ``fsdp`` with those that share parameters and gradients too. Of a pipeline its stages, times the chunks of
            each, and the schedule where it is not 1F1B; of isp the ranks that share the sequence, and those that share
            each weight, and ``dp`` where there are more ranks than these. Of a mixture ``ep`` and the ranks that share
            its experts.
        ranks: how many.
        parallel: the `parallel` block.
        chunks: stages on each rank of a pipeline.
    """

    name: str
    ranks: int
    parallel: Settings
    chunks: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the table: a job at a layout, compared with the same job on one process.

    Attributes:
        name: as typed: its layout's, then what differs from the small model and the plain way.
        layout: of the ranks.
        model: the blocks that say what is trained, for both.
        way: the blocks that say how, for the layout alone: one process always does it the plain way.
    """

    name: str
    layout: Layout
    model: Settings = field(default_factory=dict)
    way: Settings = field(default_factory=dict)


def _data_parallel(ranks: int) -> Iterator[Layout]:
    for zero1 in _sizes(ranks):
        yield Layout(f"dp{ranks}{_zero(zero1)}", ranks, {"zero1": {"size": zero1}})


def _tensor_parallel(ranks: int) -> Iterator[Layout]:
    for mode in ("mtp", "msp", "fsp"):
        for tensor in _sizes(ranks)[1:]:
            data = ranks // tensor
            for zero1 in _sizes(data):
                name = f"{mode}{tensor}" + (f"-dp{data}{_zero(zero1)}" if data > 1 else "")
                yield Layout(name, ranks, {"tensor": {"size": tensor, "mode": mode}, "zero1": {"size": zero1}})


def _fully_sharded(ranks: int) -> Iterator[Layout]:
    for zero1 in _sizes(ranks):
        yield Layout(f"dp{ranks}-fsdp{zero1}", ranks, {"zero1": {"size": zero1, "fsdp": True}})
    for mode in ("mtp", "msp", "fsp"):
        for tensor in _sizes(ranks // 2)[1:]:
            for zero1 in _sizes(ranks // tensor)[1:]:
                name = f"{mode}{tensor}-dp{ranks // tensor}-fsdp{zero1}"
                zero = {"size": zero1, "fsdp": True}
                yield Layout(name, ranks, {"tensor": {"size": tensor, "mode": mode}, "zero1": zero})


def _gathered(ranks: int) -> Iterator[Layout]:
    for tensor in _sizes(ranks):
        for weight in _sizes(ranks):
            if tensor == weight == 1:
                continue
            for zero1 in _sizes(ranks // weight):
                parallel: Settings = {
                    "tensor": {"size": tensor, "mode": "isp"},
                    "weight": {"size": weight},
                    "zero1": {"size": zero1},
                }
                beside = f"-dp{ranks // tensor}" if ranks > max(tensor, weight) else ""
                yield Layout(f"isp{tensor}w{weight}{beside}{_zero(zero1)}", ranks, parallel)


SCHEDULES = {"": ("1F1B", 1), "x2": ("1F1B", 2), "zbh1": ("ZBH1", 1), "zbv": ("ZBV", 2)}
"""Mode and chunks of a pipeline by what its name has behind the number of ranks."""


def _pipelines(ranks: int) -> Iterator[Layout]:
    for size in _sizes(ranks)[1:]:
        for said, (mode, chunks) in SCHEDULES.items():
            if size * chunks > LAYERS:
                continue
            pipeline = {"size": size, "mode": mode}
            if ranks == size:
                yield Layout(f"pp{size}{said}", ranks, {"pipeline": pipeline}, chunks)
                continue
            for beside in (*_data_parallel(ranks // size), *_tensor_parallel(ranks // size), *_gathered(ranks // size)):
                name = f"pp{size}{said}-{beside.name}"
                yield Layout(name, ranks, {"pipeline": pipeline, **beside.parallel}, chunks)


def _dealt(ranks: int) -> Iterator[Layout]:
    """Layouts with data-parallel ranks that say how many of these share the experts; one that says nothing has as many
    as divide. With stages only those in which all do."""
    for beside in (*_data_parallel(ranks), *_tensor_parallel(ranks), *_pipelines(ranks)):
        parallel = beside.parallel
        tensor, stages = (parallel.get(axis, {}).get("size", 1) for axis in ("tensor", "pipeline"))
        data = ranks // (tensor * stages)
        if data == 1 or parallel.get("tensor", {}).get("mode") == "isp":  # which fetches all experts
            continue
        for size in _sizes(data) if stages == 1 else (data,):
            name = f"{beside.name}-ep{size}"
            yield Layout(name, ranks, {**parallel, "expert": {"size": size}}, beside.chunks)


def _sizes(ranks: int) -> list[int]:
    return [size for size in (1, *SIZES) if size <= ranks]


def _zero(size: int) -> str:
    return f"-zero{size}" if size > 1 else ""


LAYOUTS = tuple(
    layout
    for ranks in SIZES
    for layout in (
        *_data_parallel(ranks),
        *_tensor_parallel(ranks),
        *_fully_sharded(ranks),
        *_gathered(ranks),
        *_pipelines(ranks),
    )
)
"""Every layout, of each number of ranks, whatever the model."""

DEALT = tuple(layout for ranks in SIZES for layout in _dealt(ranks))
"""Those of a mixture of experts, besides."""

_EXPERTS = {"num_experts": 4, "num_kv_attention_heads": 8}

MODELS: MappingProxyType[str, Settings] = MappingProxyType(
    {
        "internlm": {"model_type": "INTERNLM", "model": {"num_kv_attention_heads": 8}},
        "llama2": {"model_type": "LLAMA2", "model": {"no_bias": True}},
        "llama3": {"model_type": "LLAMA3"},
        "qwen3": {"model_type": "QWEN3", "model": {"head_dim": 8}},
        "one-kv-head": {"model": {"num_kv_attention_heads": 1}},
        "tied": {"model_type": "LLAMA3", "model": {"tie_word_embeddings": True}},
        "moe": {
            "model_type": "INTERNLM_MoE",
            "model": {**_EXPERTS, "moe_use_residual": True},
            "moe": {"top_k": 2, "noisy_gate_policy": "RSample", "min_capacity": 1},
            "loss": {"moe_loss_coeff": 0.1},
        },
        "moe-one-expert": {
            "model_type": "INTERNLM_MoE",
            "model": _EXPERTS,
            "moe": {"top_k": 1, "noisy_gate_policy": "Jitter", "capacity_factor": 0.5, "min_capacity": 1},
        },
        "moe-dropless": {
            "model_type": "INTERNLM_MoE",
            "model": {**_EXPERTS, "moe_type": "MegaBlock"},
            "moe": {"top_k": 3},
        },
        "moe-muon": {
            "model_type": "INTERNLM_MoE",
            "model": {**_EXPERTS, "moe_type": "MegaBlock", "moe_use_residual": True},
            "moe": {"top_k": 3},
            "optimizer": {"name": "muon"},
        },
        "smoothing": {"loss": {"label_smoothing": 0.1}},
        "dropout": {"model": {"drop_rate": 0.1}},
        "embed-grad-scale": {"model": {"embed_grad_scale": 0.1}},
        "norm-head": {"model": {"norm_head": True}},
        "layernorm": {"model": {"norm_type": "layernorm"}},
        "post-norm": {"model": {"apply_post_layer_norm": True}},
        "no-decay": {
            "model": {"norm_type": "layernorm", "tie_word_embeddings": True},
            "adam": {"weight_decay": 0.5, "no_decay": ["norm", "bias", "embedding"]},
        },
        "muon": {"model_type": "LLAMA3", "optimizer": {"name": "muon"}, "adam": {"weight_decay": 0.5}},
        "muon-fused": {"optimizer": {"name": "muon"}},
        "gelu": {"model": {"use_swiglu": False}},
        "fp32-norm": {"use_fp32_norm": True},
        "fp32-residual": {"model": {"residual_in_fp32": True}},
        "six-layers": {"model": {"num_layers": 6}},
        "uniform": {"model": {"init_type": "uniform", "use_scaled_init": False}},
        "across-documents": {"data": {"pack_sample_into_one": True}},
        "padded": {"data": {"use_packed_dataset": False}},
    }
)
"""What differs from the small model, an INTERNLM2_PUBLIC: blocks of a configuration by what is typed."""

_HALF_A_BATCH: Settings = {"data": {"global_batch_tokens": SEQ_LEN * MICRO_BSZ * MICRO_BATCHES // 2}}
"""For the many rows of other models: two micro-batches on each of two data-parallel ranks are enough."""

WAYS: MappingProxyType[str, Settings] = MappingProxyType(
    {
        "recompute": {"model": {"checkpoint": True}},
        "recompute-half": {"model": {"checkpoint": 0.5}},
        "overlap": {"hybrid_zero_optimizer": {"overlap_sync_grad": True}},
        "overlap-params": {"hybrid_zero_optimizer": {"overlap_sync_param": True, "all_gather_size": 3000}},
        "vocab-embedding": {"model": {"embed_split_hidden": False}},
        "whole-logits": {"model": {"parallel_output": False}},
        "compile": {"model": {"compile": True}},
        "weight-overlap": {"parallel": {"weight": {"overlap": True}}},
        "memory-pool": {"parallel": {"weight": {"overlap": True, "memory_pool": True}}},
    }
)
"""Settings of execution, which may change no number: blocks by what is typed."""


_TOGETHER = (
    ("dropout", "recompute"),  # what is recomputed must draw the same again
    ("moe", "recompute"),
    ("moe-one-expert", "recompute"),
    ("embed-grad-scale", "vocab-embedding"),
    ("smoothing", "whole-logits"),
    ("norm-head", "whole-logits"),
)
"""Models and ways that may get in each other's."""


def _rows() -> Iterator[Row]:
    for layout in LAYOUTS:
        yield Row(layout.name, layout)
        yield Row(f"{layout.name}-recompute", layout, way=WAYS["recompute"])
        yield from _fetching(layout)
        yield from _publishing(layout)
        yield from _whole_matrices(layout)
    for layout in _typical():
        for way in WAYS:
            if way not in ("recompute", "overlap-params", *_FETCHING) and _matters(way, layout):
                yield Row(f"{layout.name}-{way}", layout, way=WAYS[way])
        if layout.name == "dp4-zero2":
            continue  # dp2-zero2 has shown it
        for model, blocks in MODELS.items():
            if _matters(model, layout):
                yield Row(f"{layout.name}-{model}", layout, merge(_HALF_A_BATCH, blocks))
        for model, way in _TOGETHER:
            if _matters(way, layout) and _matters(model, layout):
                yield Row(f"{layout.name}-{model}-{way}", layout, merge(_HALF_A_BATCH, MODELS[model]), WAYS[way])

    for layout in DEALT:
        batch = {} if layout.name.startswith("dp4") else _HALF_A_BATCH
        for model in ("moe", "moe-one-expert", "moe-dropless"):
            yield Row(f"{layout.name}-{model}", layout, merge(batch, MODELS[model]))
        if _leaves_matrices_whole(layout):
            yield Row(f"{layout.name}-moe-muon", layout, merge(batch, MODELS["moe-muon"]))
        for way in ("recompute", "overlap", "overlap-params") if "-zero" in layout.name else ():
            yield Row(f"{layout.name}-moe-{way}", layout, merge(batch, MODELS["moe"]), WAYS[way])


_FETCHING = ("weight-overlap", "memory-pool")


def _fetching(layout: Layout) -> Iterator[Row]:
    """The ways of fetching weights, at every fraction of recomputed blocks."""
    if layout.parallel.get("weight", {}).get("size", 1) == 1:
        return
    for way in _FETCHING:
        yield Row(f"{layout.name}-{way}", layout, way=WAYS[way])
        for recomputed in ("recompute", "recompute-half"):
            yield Row(f"{layout.name}-{way}-{recomputed}", layout, way=merge(WAYS[way], WAYS[recomputed]))


def _publishing(layout: Layout) -> Iterator[Row]:
    """Updated parameters behind the next forward pass, where there is anything to gather; of stages also where two of
    them read one, and of isp where the next block's weights are sent for ahead."""
    zero = layout.parallel.get("zero1", {})
    if zero.get("size", 1) == 1 or zero.get("fsdp"):
        return
    way = WAYS["overlap-params"]
    yield Row(f"{layout.name}-overlap-params", layout, way=way)
    if "pipeline" in layout.parallel:
        yield Row(f"{layout.name}-tied-overlap-params", layout, merge(_HALF_A_BATCH, MODELS["tied"]), way)
    if layout.parallel.get("weight", {}).get("size", 1) > 1:
        yield Row(f"{layout.name}-memory-pool-overlap-params", layout, way=merge(WAYS["memory-pool"], way))


def _whole_matrices(layout: Layout) -> Iterator[Row]:
    """Muon with both overlaps where ranks share states, also with fewer matrices of a shape than ranks, and where they
    share the sequence alone."""
    if not _leaves_matrices_whole(layout):
        return
    model = merge({} if layout.name.startswith("dp4") else _HALF_A_BATCH, MODELS["muon"])
    if layout.parallel.get("zero1", {}).get("size", 1) > 1:
        way = merge(WAYS["overlap"], WAYS["overlap-params"])
        yield Row(f"{layout.name}-muon-overlap", layout, model, way)
        if "pipeline" not in layout.parallel:
            yield Row(f"{layout.name}-muon-one-layer-overlap", layout, merge(model, {"model": {"num_layers": 1}}), way)
    elif layout.parallel.get("tensor", {}).get("size", 1) > 1:
        yield Row(f"{layout.name}-muon", layout, model)


def _typical() -> list[Layout]:
    """One layout of each kind, on which every model is tried: heads repeated where they can be."""
    names = (
        "dp2-zero2",
        "dp2-fsdp2",
        "mtp2",
        "msp2",
        "fsp2",
        "isp1w2",
        "isp2w2",
        "dp4-zero2",
        "mtp4",
        "msp4",
        "fsp2-dp2-zero2",
        "msp2-dp2-fsdp2",
        "isp2w4",
        "isp4w2-zero2",
        "pp2",
        "pp2x2",
        "pp2zbh1",
        "pp2zbv",
        "pp4",
        "pp2-dp2-zero2",
        "pp2-mtp2",
        "pp2x2-msp2",
        "pp2-isp2w2",
    )
    return [layout for layout in LAYOUTS if layout.name in names]


def _matters(named: str, layout: Layout) -> bool:
    """Whether a model or way is another one at a layout. Compilation takes a minute, and is tried where it has most to
    do."""
    tensor = layout.parallel.get("tensor", {}).get("size", 1)
    if named == "compile":
        return layout.name in ("dp2-fsdp2", "msp2", "msp4", "isp2w2", "pp2", "pp2x2-msp2")
    if layout.parallel.get("zero1", {}).get("fsdp") and (named == "overlap" or named.startswith("moe")):
        return False
    if named in ("muon", "muon-fused", "moe-muon") and not _leaves_matrices_whole(layout):
        return False
    if named == "six-layers":  # stages of unlike size
        return "pipeline" in layout.parallel
    return named not in ("vocab-embedding", "whole-logits") or tensor > 1


def _leaves_matrices_whole(layout: Layout) -> bool:
    """Whether each rank has all of every matrix of its blocks, which Muon needs."""
    tensor, weight = layout.parallel.get("tensor", {}), layout.parallel.get("weight", {})
    cut = tensor.get("size", 1) if tensor.get("mode") != "isp" else weight.get("size", 1)
    return cut == 1 and not layout.parallel.get("zero1", {}).get("fsdp")


ROWS = tuple(_rows())
"""All that there is, in the order in which it is run."""


def rows_of_own(experts: int) -> list[Row]:
    """The rows for a model of the user's, which takes the place of those that rows speak of.

    Args:
        experts: of each of its layers.
    """
    dealt = DEALT if experts > 1 else ()
    return [*(row for row in ROWS if not row.model), *(Row(layout.name, layout) for layout in dealt)]


def chosen(words: Sequence[str], ranks: int, rows: Sequence[Row] = ROWS) -> list[Row]:
    """The rows that are meant, in the order of the list.

    Args:
        words: names, patterns with ``*`` and ``?``, or ``all``: every row of so many ranks.
        ranks: how many there are.

    Raises:
        ConfigError: a name is no row, of no number of ranks or not of this one; a pattern fits none.
    """
    of_size = [row for row in rows if row.layout.ranks == ranks]
    wanted: set[str] = set()
    for word in words:
        found = {row.name for row in of_size if word == "all" or fnmatch.fnmatchcase(row.name, word)}
        if not found:
            raise _unknown(word, ranks, rows)
        wanted |= found
    return [row for row in of_size if row.name in wanted]


def ranks_of(words: Sequence[str], rows: Sequence[Row] = ROWS) -> int:
    """The number of ranks that names stand for, where they stand for one; else the smallest there is."""
    found = {row.layout.ranks for word in words for row in rows if row.name == word}
    return found.pop() if len(found) == 1 else SIZES[0]


def _unknown(word: str, ranks: int, rows: Sequence[Row]) -> ConfigError:
    elsewhere = {row.layout.ranks for row in rows if fnmatch.fnmatchcase(row.name, word)}
    if elsewhere:
        other = min(elsewhere)
        return ConfigError(f"{word} is for {other} ranks, not {ranks}", key="--layouts", hint=f"add --ranks {other}")
    names = [row.name for row in rows if row.layout.ranks == ranks]
    return ConfigError(f"no such layout: {word}{suggest(word, names)}", key="--layouts", hint="--list shows all")


def settings_of(row: Row) -> tuple[dict[str, Any], ...]:
    """The blocks that make a row's job out of another's."""
    chunks = {"model": {"num_chunks": row.layout.chunks}} if row.layout.chunks > 1 else {}
    return row.model, row.way, {"parallel": row.layout.parallel}, chunks
