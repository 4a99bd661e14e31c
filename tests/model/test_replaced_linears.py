"""Linear layers replaced by ones that hold a part, as parallel layouts do it: here all parts in one process.

A stand-in returns what one rank's layer would: its part of the heads, for all tokens, whatever part of them came in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evo_core.generate.kv_cache import KVCache
from evo_core.model import Decoder, build_model, init_weights
from evo_core.model.decoder import Attention
from evo_core.model.draws import Draws
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.linear import Linear
from evo_core.model.ops.moe import Gate
from evo_core.placement import Placement
from tests.model.configs import randomise, relative_error, tiny

FAMILIES: dict[str, dict[str, Any]] = {
    "blocked": {"model_type": "INTERNLM", "num_kv_attention_heads": 4},
    "blocked, shared heads": {"model_type": "INTERNLM", "num_kv_attention_heads": 2},
    "grouped": {"num_kv_attention_heads": 2},
    "grouped, one kv head": {"num_kv_attention_heads": 1},
    "split": {"model_type": "LLAMA2", "num_kv_attention_heads": 2},
    "split, normed": {"model_type": "QWEN3", "num_kv_attention_heads": 2, "head_dim": 12},
}
Gather = Callable[[], Tensor]
LENGTHS = {"one document": [16], "several": [5, 3, 8], "equal ones": [8, 8]}


class Part(Linear):
    """Rows (or columns) of another linear layer.

    Args:
        gathers: gives all tokens for the part that comes in; None where all come in.
    """

    def __init__(
        self, whole: Linear, rows: Any, columns: Any = slice(None), gathers: Callable[[], Tensor] | None = None
    ):
        weight = whole.weight.detach()[rows][:, columns].clone()
        super().__init__(weight.shape[1], weight.shape[0], bias=whole.bias is not None, dtype=weight.dtype)
        self.weight, self.rows, self.columns, self.gathers = nn.Parameter(weight), rows, columns, gathers
        if whole.bias is not None:
            self.bias = nn.Parameter(whole.bias.detach()[rows].clone())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.gathers is None else self.gathers())


def rows_of(heads: list[int], width: int, first: int = 0) -> list[int]:
    return [(first + head) * width + i for head in heads for i in range(width)]


def cut(attention: Attention, part: int, parts: int, gathers: Gather | None) -> None:
    """Leave one part of the heads; a key/value head that several parts read is in each of them."""
    width, group = attention.head_dim, attention.group
    heads, kv_heads = attention.heads, attention.kv_heads
    mine = list(range(part * heads // parts, (part + 1) * heads // parts))
    keys = sorted({head // group for head in mine})
    if attention.layout == "split":
        attention.q = Part(attention.q, rows_of(mine, width), gathers=gathers)
        attention.k = Part(attention.k, rows_of(keys, width), gathers=gathers)
        attention.v = Part(attention.v, rows_of(keys, width), gathers=gathers)
    elif attention.layout == "blocked":
        rows = rows_of(mine, width) + rows_of(keys, width, heads) + rows_of(keys, width, heads + kv_heads)
        attention.qkv = Part(attention.qkv, rows, gathers=gathers)
    else:
        rows = []
        for key in keys:
            first = key * (group + 2)
            rows += rows_of([head - key * group for head in mine if head // group == key], width, first)
            rows += rows_of([group, group + 1], width, first)
        attention.qkv = Part(attention.qkv, rows, gathers=gathers)
    attention.out = Part(attention.out, slice(None), rows_of(mine, width))
    if attention.out.bias is not None and part > 0:
        attention.out.bias = None  # of a sum over parts, one adds it
    assert (attention.heads, attention.kv_heads) == (len(mine), len(keys))


def model_of(family: str) -> Decoder:
    model = build_model(tiny(**FAMILIES[family] | {"dtype": "float64"}))
    randomise(model)
    return model


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_the_heads_on_gathered_tokens_add_up(family: str, parts: int, lengths: str) -> None:
    model = model_of(family)
    ends = torch.tensor([0, *LENGTHS[lengths]]).cumsum(0)
    documents, positions = Documents(ends.int()), torch.cat([torch.arange(n) for n in LENGTHS[lengths]])
    rotation, attention = model.rotation(positions), model.blocks["0"].attention
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    expected = attention(x, rotation, documents)
    expected.square().sum().backward()
    d_x, x.grad = x.grad, None

    copies, outputs = [], []
    for part in range(parts):
        mine = copy.deepcopy(attention)
        cut(mine, part, parts, lambda: x)
        mine.zero_grad()
        copies.append(mine)
        outputs.append(mine(x[part * 16 // parts : (part + 1) * 16 // parts], rotation, documents))
    total = sum(outputs)
    assert relative_error(total, expected) < 1e-12
    total.square().sum().backward()
    assert relative_error(x.grad, d_x) < 1e-12
    for name, parameter in attention.named_parameters():
        gathered = torch.zeros_like(parameter)
        for mine in copies:
            linear = mine.get_submodule(name.rpartition(".")[0])
            grad = getattr(linear, name.rpartition(".")[2])
            if grad is None:
                continue
            if isinstance(linear, Part) and grad.dim() == 2:
                rows = torch.arange(len(gathered))[linear.rows]
                columns = torch.arange(gathered.shape[1])[linear.columns]
                gathered[rows[:, None], columns] += grad.grad  # a head that is in several parts: their sum
            else:
                gathered[linear.rows if isinstance(linear, Part) else slice(None)] += grad.grad
        assert relative_error(gathered, parameter.grad) < 1e-12, name


@torch.no_grad()
@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_keeps_the_heads_that_its_model_has(family: str, parts: int) -> None:
    model = model_of(family).eval()
    generator = torch.Generator().manual_seed(0)
    prompt, newest = (torch.randn(n, 32, generator=generator, dtype=torch.float64) for n in (7, 2))

    def attended(model: Decoder) -> list[Tensor]:
        cache = KVCache(model)
        cache.extend([3, 4], [5, 5])
        documents = Documents(torch.tensor([0, 3, 7], dtype=torch.int32))
        attention = model.blocks["1"].attention
        first = attention(prompt, cache.rotation, documents, cache)
        cache.step()
        each = Documents(torch.tensor([0, 1, 2], dtype=torch.int32))
        assert cache.layers[1].shape[2] == attention.kv_heads
        return [first, attention(newest, cache.rotation, each, cache)]

    sums = [torch.zeros_like(prompt), torch.zeros_like(newest)]
    for part in range(parts):
        mine = copy.deepcopy(model)
        for block in mine.blocks.values():
            cut(block.attention, part, parts, None)
        for total, output in zip(sums, attended(mine), strict=True):
            total += output
    for total, expected in zip(sums, attended(model), strict=True):
        assert relative_error(total, expected) < 1e-12


@pytest.mark.parametrize(
    "moe",
    [
        {"top_k": 1, "noisy_gate_policy": "RSample"},
        {"top_k": 2, "noisy_gate_policy": "RSample"},
        {"top_k": 1, "use_rts": False},
        {"top_k": 3},
    ],
    ids=["one, noise", "two, noise", "one, in order", "dropless"],
)
def test_a_router_that_gathers_routes_all_tokens(moe: dict[str, Any]) -> None:
    kind = {"moe_type": "GShard" if moe["top_k"] < 3 else "MegaBlock"}
    moe = {"capacity_factor": 0.5, "min_capacity": 1, **moe}
    cfg = tiny(model_type="INTERNLM_MoE", num_experts=4, dtype="float64", moe=moe, **kind)
    gate = Gate(cfg, device="cpu", dtype=torch.float64)
    randomise(gate, scale=1.0)
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = gate(x, draws=Draws(1, 2, 3).layer(1))
    assert expected.kept.all() == (cfg.moe_type == "MegaBlock")
    gate.wg = Part(gate.wg, slice(None), gathers=lambda: x)
    for start in (0, 20):
        routing = gate(x[start : start + 20], draws=Draws(1, 2, 3, start=start, tokens=40).layer(1))
        for one, other in zip(routing, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_weights_of_a_piece_are_the_piece_of_the_whole(family: str, uniform: bool) -> None:
    settings = FAMILIES[family] | {"init_type": "uniform" if uniform else "normal", "num_layers": 3}
    cfg = tiny(**settings)
    whole = build_model(cfg)
    init_weights(whole, cfg, 7)
    expected = whole.state_dict()
    for part in range(2):
        model, placements = build_model(cfg), {}
        for name, parameter in model.named_parameters():
            if parameter.dim() != 2:
                continue
            dim = 1 if name.endswith(("wo.weight", "out_proj.weight", "w2.weight")) else 0
            placement = Placement.cut(parameter.shape, dim, part, 2, [part])
            if family.startswith("blocked") and name.endswith("Wqkv.weight"):
                kv_size = cfg.num_kv_attention_heads * cfg.head_dim
                placement = Placement.fused(parameter.shape, 0, (cfg.hidden_size, kv_size, kv_size), part, 2, [part])
            placements[name] = placement.share(part, 3, [part])
            parameter.data = torch.full(placements[name].local_shape, float("nan"))
        init_weights(model, cfg, 7, placements)
        for name, parameter in model.named_parameters():
            if name not in placements:
                assert torch.equal(parameter, expected[name]), name
                continue
            assert parameter.isfinite().all()
            for piece in placements[name].pieces:
                assert torch.equal(piece.of(parameter), piece.where.of(expected[name])), name


def test_a_parameter_of_another_shape_than_its_placement_is_refused() -> None:
    cfg = tiny()
    model = build_model(cfg)
    placement = Placement.cut((61, 32), 0, 0, 2, [0])
    with pytest.raises(ValueError, match="in place of"):
        init_weights(model, cfg, 7, {"output.weight": placement})
