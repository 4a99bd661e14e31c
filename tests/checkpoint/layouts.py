"""Tensors of every kind that model parallelism and ZeRO cut, as each rank of a layout holds them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evo_core.placement import Placed, Placement, Span


class Layout(NamedTuple):
    """Tensor ranks are neighbours, then ranks of a ZeRO group; replicas are the slowest."""

    tensor: int
    zero: int
    replicas: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor * self.zero * self.replicas


ONE = Layout(1, 1)
LAYOUTS = [ONE, Layout(2, 1), Layout(1, 2), Layout(1, 1, 2), Layout(2, 2), Layout(4, 1), Layout(1, 4), Layout(1, 2, 2)]


def wholes() -> dict[str, Tensor]:
    """The tensors before anything is cut; sizes that do not divide, a scalar, and one without elements."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "wqkv": (16, 10), "wo": (10, 8), "w1": (13, 10), "norm": (7,), "short": (1, 3),
        "experts": (3, 4, 5), "kv": (6, 4), "scale": (), "none": (0, 4),
    }  # fmt: skip
    dtypes = {"w1": torch.bfloat16, "norm": torch.float64}
    return {
        name: torch.randn(shape, generator=generator).to(dtypes.get(name, torch.float32))
        for name, shape in shapes.items()
    }


def placements(layout: Layout, rank: int) -> dict[str, Placement]:
    """What a rank holds of each tensor as a weight, and of ``moment.<name>`` as its share by rows of that."""
    tensor, count = rank % layout.tensor, layout.tensor
    everybody = range(layout.ranks)
    alike = [other for other in everybody if other % count == tensor]
    weights = {
        "wqkv": Placement.fused((16, 10), 0, (8, 4, 4), tensor, count, alike),
        "wo": Placement.cut((10, 8), 1, tensor, count, alike),
        "w1": Placement.cut((13, 10), 0, tensor, count, alike),
        "experts": Placement.cut((3, 4, 5), 2, tensor, count, alike),
        # Four rows of one's own, and one key and one value row that all ranks have.
        "kv": Placement.joined(
            (6, 4),
            0,
            [
                Span(4 * tensor // count, 4 * (tensor + 1) // count, alike),
                Span(4, 5, everybody),
                Span(5, 6, everybody),
            ],
        ),
        **{name: Placement.whole(wholes()[name].shape, everybody) for name in ("norm", "short", "scale", "none")},
    }
    zero = rank // count % layout.zero
    same_share = [other for other in everybody if other // count % layout.zero == zero]
    return weights | {f"moment.{name}": p.share(zero, layout.zero, same_share) for name, p in weights.items()}


def held(layout: Layout, rank: int, *, filled: bool) -> dict[str, Placed]:
    """A rank's local tensors: with what belongs there, or with something else."""
    whole, made = wholes(), {}
    for name, placement in placements(layout, rank).items():
        source = whole[name.removeprefix("moment.")]
        made[name] = Placed(torch.full(placement.local_shape, -7, dtype=source.dtype), placement)
        if filled:
            made[name].fill(-source if name.startswith("moment.") else source)
    return made
