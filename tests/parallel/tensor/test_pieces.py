"""Which rows of a projection a rank holds: what attention makes of them are the heads of its part, in their order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evo_core.model import build_model
from evo_core.model.ops.linear import Linear
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.tensor.pieces import Pieces, head_rows
from evo_core.placement import Held, Placed, Rectangle, tiling_fault
from tests.model.configs import tiny
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

WIDTH = 4
LAYOUTS = {"INTERNLM2_PUBLIC": "grouped", "INTERNLM": "blocked", "QWEN3": "split"}


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_a_part_of_the_rows_gives_its_heads(model_type: str, count: int, kv_heads: int) -> None:
    if model_type == "INTERNLM" and kv_heads != 8:
        pytest.skip("INTERNLM has as many key and value heads as query heads")
    attention = projection(model_type, kv_heads)
    x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = (part.reshape(5, -1, WIDTH) for part in attention.project(x))
    weights = {name: getattr(attention, name).weight.detach() for name in names(attention)}
    for t in range(count):
        rows: Any = head_rows(LAYOUTS[model_type], 8, kv_heads, WIDTH, t, count)
        for name, own in zip(weights, rows if len(weights) == 3 else [rows], strict=True):
            setattr(attention, name, linear_of(torch.cat([weights[name][a:b] for a, b in own])))
        own_q, own_k, own_v = (part.reshape(5, -1, WIDTH) for part in attention.project(x))
        heads = list(range(t * 8 // count, (t + 1) * 8 // count))
        kv = sorted({head * kv_heads // 8 for head in heads})
        assert torch.allclose(own_q, q[:, heads], rtol=0, atol=1e-13)
        assert torch.allclose(own_k, k[:, kv], rtol=0, atol=1e-13)
        assert torch.allclose(own_v, v[:, kv], rtol=0, atol=1e-13)


def projection(model_type: str, kv_heads: int) -> Any:
    settings = {"hidden_size": 32, "num_attention_heads": 8, "num_kv_attention_heads": kv_heads, "num_layers": 1}
    model = build_model(tiny(model_type=model_type, dtype="float64", no_bias=True, **settings))
    attention = model.blocks["0"].attention
    for number, parameter in enumerate(attention.parameters()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(number))
    return attention


def names(attention: Any) -> tuple[str, ...]:
    return ("q", "k", "v") if attention.layout == "split" else ("qkv",)


def linear_of(weight: Tensor) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight)
    return layer


def test_the_ranks_hold_every_element_and_say_alike_who_does() -> None:
    for ranks in zip(*run_on_ranks(_held, 4), strict=True):
        shape = ranks[0].on_each[0].shape
        everywhere: dict[Rectangle, set[int]] = {}
        for rank, held in enumerate(ranks):
            assert [each.pieces for each in held.on_each] == [each.pieces for each in ranks[rank // 2 * 2].on_each]
            for piece in held.placement.pieces:
                everywhere.setdefault(piece.where, set()).add(rank)
        assert tiling_fault(shape, everywhere) is None
        for piece in itertools.chain.from_iterable(held.placement.pieces for held in ranks):
            assert set(piece.ranks) == everywhere[piece.where]


def _held() -> list[Held]:
    """On 2 data and 2 tensor ranks: whole, cut evenly, and with rows that both tensor ranks hold."""
    mesh: Mesh = mesh_of(-1, tensor=2)
    pieces = Pieces(mesh)
    whole = pieces.whole((3, 2), partial=True)
    shared = pieces.rows((8, 3), [[(0, 2), (4, 8)], [(2, 4), (4, 8)]])
    placed = Placed(torch.empty(6, 3), shared.placement)
    placed.fill(torch.arange(24.0).view(8, 3))
    first = 0 if mesh.tensor.rank == 0 else 2
    assert placed.local[:, 0].tolist() == [3.0 * row for row in (first, first + 1, 4, 5, 6, 7)]
    return [whole, pieces.even((8, 3), 0), pieces.even((3, 8), 1), shared]
