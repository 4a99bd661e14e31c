"""Bytes that a rank holds for training, beside torch's own: the second part of ``python -m benchmarks.optimizer``.

One Llama takes two steps on ranks of this machine, by each of some settings; then the memory that its tensors lie in is
counted by what they are, on the rank that holds most, and compared with the table of docs/training.md. Of torch's the
same is counted: whatever mixed precision it computes in, its parameters are the float32 ones, which are their own
master values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks import fsdp_peer, zero_peer
from benchmarks.peer_models import Shape, evo
from evo_core.optim.groups import groups_of
from evo_core.optim.zero1 import Zero1AdamW
from tests.optim.held import KINDS, counted, documented, storages
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

DDP, FSDP = "DDP + ZeroRedundancyOptimizer", "fully_shard"
LIMIT = 0.01
"""By how much padding and norms of another type may change what the page states."""


class Row(NamedTuple):
    """A setting of this repository's, on as many ranks as share a copy of the states."""

    dtype: torch.dtype
    zero: int
    gathered: int

    @property
    def name(self) -> str:
        """As it is printed."""
        size = f", all_gather_size {self.gathered:,}" if self.zero > 1 else ""
        return f"{str(self.dtype).removeprefix('torch.')}, zero1 {self.zero}{size}"


def rows_of(shape: Shape) -> list[Row]:
    """Both types, zero1 1, 2 and 4, and messages of an eighth of a block and of one."""
    of_block = sum(param.numel() for param in evo(shape._replace(layers=1)).blocks["0"].parameters())
    return [
        Row(dtype, zero, gathered)
        for dtype in (torch.float32, torch.bfloat16)
        for zero in (1, 2, 4)
        for gathered in ((of_block // 8, of_block) if zero > 1 else (of_block,))
    ]


def batch(shape: Shape) -> dict[str, Any]:
    """A few tokens."""
    ids = torch.arange(17) % shape.vocab
    return {
        "input_ids": ids[:-1],
        "positions": torch.arange(16),
        "cu_seqlens": torch.tensor([0, 16], dtype=torch.int32),
        "labels": ids[1:],
        "max_seqlen": 16,
    }


def ours(row: Row, shape: Shape) -> dict[str, int]:
    """Of this rank."""
    model, mesh = evo(shape, row.dtype), mesh_of(row.zero)
    optimizer = Zero1AdamW(groups_of(model, mesh), mesh.world, gather_size=row.gathered)
    for _ in range(2):
        optimizer.begin()
        optimizer.backward(model(**batch(shape)).loss, last=True)
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        optimizer.step(1e-3, 0.95)
    return counted(model, optimizer)


def torchs(name: str, shape: Shape) -> dict[str, int]:
    """Of this rank, by torch's DistributedDataParallel or `fully_shard`."""
    model: Any
    if name == DDP:
        model = zero_peer.distributed(evo(shape), 2**25)
        zero, update = zero_peer.optimizer(model, 1e-3)
        adamw: torch.optim.Optimizer = zero.optim
    else:
        model = fsdp_peer.sharded(evo(shape), mesh_of(-1).devices["zero"])
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        update = adamw.step
    for _ in range(2):
        model.zero_grad(set_to_none=False)
        model(**batch(shape)).loss.backward()
        update()
    moments = (value for state in adamw.state.values() for key, value in state.items() if key.startswith("exp_avg"))
    gradients = [param.grad for param in model.parameters() if param.grad is not None]
    found = storages({
        "parameters": _local(model.parameters()),
        "gradients": _local(gradients),
        "master values and moments": _local(moments),
    })  # fmt: skip
    return found | {"buffer": 0}


def _local(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)


def run(shape: Shape) -> dict[str, dict[str, Any]]:
    """By setting, the bytes of the rank that holds most, and as the page states them.

    Raises:
        SystemExit: they differ.
    """
    elements = sum(param.numel() for param in evo(shape).parameters())
    found: dict[str, dict[str, Any]] = {}
    for row in rows_of(shape):
        most = largest(run_on_ranks(partial(ours, row, shape), row.zero, timeout=300))
        stated = documented(elements, row.zero, row.dtype, row.gathered)
        for kind in KINDS:
            if abs(most[kind] - stated[kind]) > LIMIT * max(stated[kind], 1):
                raise SystemExit(f"{row.name}: {most[kind]:,} bytes of {kind}, by docs/training.md {stated[kind]:,.0f}")
        found[row.name] = {"counted": most, "stated": stated}
    for name in (DDP, FSDP):
        for ranks in (2, 4):
            most = largest(run_on_ranks(partial(torchs, name, shape), ranks, timeout=300))
            found[f"{name}, {ranks} ranks"] = {"counted": most}
    return found


def largest(ranks: list[dict[str, int]]) -> dict[str, int]:
    """What the rank with most holds."""
    return max(ranks, key=lambda sizes: sum(sizes.values()))


def show(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The lines of the table."""
    titles = ("parameters", "gradients", "states", "buffer", "in all")
    yield "  {:46} {:>11} {:>10} {:>8} {:>8} {:>8}   MB".format("held by a rank", *titles)
    for name, each in found.items():
        sizes = each["counted"]
        figures = " ".join(f"{sizes[kind] / 1e6:{width}.2f}" for kind, width in zip(KINDS, (11, 10, 8, 8), strict=True))
        yield f"  {name:46} {figures} {sum(sizes.values()) / 1e6:8.2f}"
    yield f"  what Evo holds is what docs/training.md states, to {LIMIT:.0%} of each"
