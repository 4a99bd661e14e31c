"""A way to share a job among so many GPUs: what the search varies, and nothing else of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evo_core.config import ModelConfig, TrainConfig
from evo_core.config.rules import rule_errors
from evo_core.config.unsupported import refusal_errors
from evo_core.errors import ConfigError
from evo_core.nearest import divisors

RECOMPUTED = (0.0, 0.5, 1.0)
"""Shares of the blocks that are tried (`model.checkpoint`)."""

_MOST_CHUNKS = 8
_WEIGHT_NODES = 8
"""isp's weight ranks are looked for in so many machines at most."""


@dataclass(frozen=True)
class Layout:
    """The settings that say how ranks share the work; names as in the configuration.

    Attributes:
        micro_num: micro-batches of each data-parallel rank, where the job states them; the tokens of a step stay.
    """

    mode: str
    tensor: int
    weight: int
    pipeline: int
    schedule: str
    chunks: int
    zero1: int
    fsdp: bool
    expert: int
    checkpoint: float
    micro_num: int | None

    @property
    def kind(self) -> tuple[bool, int, int, bool]:
        """What is alike in layouts of which one is shown: whether weights are fetched, and how layers are shared."""
        return self.mode == "isp", self.tensor, self.pipeline, self.fsdp

    def settings(self, cfg: TrainConfig) -> dict[str, Any]:
        """The blocks to lay over a job's file. What overlaps sending with computing is on: it takes no memory but isp's
        second block, and changes no number."""
        parallel: dict[str, Any] = {"zero1": {"size": self.zero1, "fsdp": self.fsdp}}
        parallel["tensor"] = {"size": self.tensor, "mode": self.mode}
        parallel["pipeline"] = {"size": self.pipeline}
        if self.pipeline > 1:
            parallel["pipeline"] |= {"mode": self.schedule, "interleaved_overlap": self.chunks > 1}
        parallel["weight"] = {"size": self.weight, **({"overlap": True} if self.weight > 1 else {})}
        if cfg.experts > 1:
            parallel["expert"] = {"size": self.expert}
        blocks: dict[str, Any] = {"parallel": parallel}
        blocks["model"] = {"checkpoint": self.checkpoint, "num_chunks": self.chunks}
        blocks["hybrid_zero_optimizer"] = {"overlap_sync_grad": True, "overlap_sync_param": True}
        if self.micro_num is not None:
            blocks["data"] = {"micro_num": self.micro_num}
        return blocks

    def applied(self, cfg: TrainConfig) -> TrainConfig:
        """The job with it, without the checks."""
        changed = {name: _over(getattr(cfg, name), values) for name, values in self.settings(cfg).items()}
        return cfg.model_copy(update=changed)


def _over(block: Any, values: dict[str, Any]) -> Any:
    changed = {name: _over(getattr(block, name), v) if isinstance(v, dict) else v for name, v in values.items()}
    return block.model_copy(update=changed)


def is_legal(cfg: TrainConfig, gpus: int) -> bool:
    """Whether a job runs on so many GPUs, by the rules of configurations."""
    try:
        for error in (*rule_errors(cfg), *refusal_errors(cfg)):
            raise error
        cfg.check_world(gpus)
    except ConfigError:
        return False
    return True


def step_packs(cfg: TrainConfig, gpus: int) -> int:
    """Micro-batches of a step over all data-parallel ranks, which every layout must come to.

    Raises:
        ConfigError: the job states them for each data-parallel rank, and its own layout has no such number.
    """
    data = cfg.data
    if data.global_batch_tokens is not None:
        return data.global_batch_tokens // data.packed_length
    dp = cfg.dp(gpus)
    return cfg.micro_num(dp) * dp


def candidates(cfg: TrainConfig, gpus: int, node: int) -> Iterator[Layout]:
    """Every layout that is looked at, legal or not, each once.

    Args:
        node: GPUs of a machine, in which tensor ranks stay.
    """
    states = cfg.data.micro_num is not None
    packs = step_packs(cfg, gpus)
    for pipeline, schedule, chunks in _pipelines(cfg, gpus):
        for mode, tensor, weight in _sharings(cfg, gpus // pipeline, node):
            data = gpus // (pipeline * tensor)
            if packs % data:
                continue
            micro_num = packs // data if states else None
            for zero1, fsdp in _zeros(gpus // (pipeline * (weight if mode == "isp" else tensor)), node, weight, tensor):
                for expert in _experts(cfg, data, node, mode, tensor):
                    for again in RECOMPUTED:
                        yield Layout(
                            mode, tensor, weight, pipeline, schedule, chunks, zero1, fsdp, expert, again, micro_num
                        )


def _pipelines(cfg: TrainConfig, gpus: int) -> Iterator[tuple[int, str, int]]:
    model: ModelConfig = cfg.model
    mode = cfg.parallel.pipeline.mode
    yield 1, "1F1B", 1
    for size in divisors(gpus):
        if not 1 < size <= model.num_layers:
            continue
        for chunks in divisors(model.num_layers):
            if chunks <= _MOST_CHUNKS and size * chunks <= model.num_layers:
                yield size, "1F1B", chunks
        if mode != "1F1B":
            yield size, mode, 2 if mode == "ZBV" else 1


def _sharings(cfg: TrainConfig, ranks: int, node: int) -> Iterator[tuple[str, int, int]]:
    """Tensor mode and size, and with isp the weight size."""
    sizes = [size for size in divisors(ranks) if size <= node]
    yield "mtp", 1, 1
    for size in sizes[1:]:
        for mode in ("mtp", "msp", "fsp"):
            yield mode, size, 1
    for size in sizes:
        for weight in divisors(ranks):
            if max(size, weight) > 1 and weight <= _WEIGHT_NODES * node:
                yield "isp", size, weight


def _zeros(holders: int, node: int, weight: int, tensor: int) -> Iterator[tuple[int, bool]]:
    """Ranks that share the states: one, those of a machine, all; the latter two with fsdp too."""
    inside = max(1, node // max(weight, tensor))
    seen = []
    for size in (1, inside, holders):
        if holders % size == 0 and size not in seen:
            seen.append(size)
            said = -1 if size == holders and size > 1 else size
            yield said, False
            if size > 1:
                yield said, True


def _experts(cfg: TrainConfig, data: int, node: int, mode: str, tensor: int) -> Iterator[int]:
    experts = cfg.experts
    if experts == 1 or mode == "isp":
        yield -1 if experts == 1 else 1
        return
    inside = max(1, node // tensor)
    yield from sorted({size for size in (1, min(inside, experts), experts) if data % size == 0 and experts % size == 0})
