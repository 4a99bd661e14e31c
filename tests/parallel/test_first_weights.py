"""First weights at any layout are those of one process, and each tensor is drawn by one rank alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evo_core.model import build_model, init_weights
from evo_core.parallel import first_weights
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.first_weights import draw_first_weights
from evo_core.placement import Placed, placements_of, tiling_fault
from tests.model.configs import tiny
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

SEED = 7
MODELS: dict[str, dict[str, Any]] = {
    "grouped": {"num_kv_attention_heads": 2},
    "repeated heads": {"num_kv_attention_heads": 1, "init_type": "uniform", "dtype": "bfloat16"},
    "tied": {"model_type": "QWEN3", "tie_word_embeddings": True},
    "experts": {"model_type": "INTERNLM_MoE", "num_experts": 2, "moe_use_residual": True},
}


def _drawn(settings: dict[str, Any], layout: dict[str, Any]) -> tuple[dict[str, Placed], list[str]]:
    """What this rank holds, and the names of what it drew."""
    names: list[str] = []
    draw = first_weights.drawn

    def noted(shape: tuple[int, ...], std: float, **place: Any) -> Tensor:
        names.append(place["name"])
        return draw(shape, std, **place)

    first_weights.drawn = noted
    cfg = tiny(vocab_size=64, **settings)
    mesh = mesh_of(-1, **layout)
    model = build_parallel(cfg, mesh, "cpu", mode="msp")
    draw_first_weights(model, cfg, SEED, mesh)
    placements = placements_of(model)
    local = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if not placements:
        assert layout == {"tensor": 1}
        return local, names  # type: ignore[return-value]
    return {name: Placed(value, placements[name]) for name, value in local.items()}, names


def _isp(tensor: int, weight: int) -> dict[str, Any]:
    return {"tensor": {"size": tensor, "mode": "isp"}, "weight": {"size": weight}}


LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    *((ranks, {"tensor": tensor}) for ranks, tensor in ((2, 1), (2, 2), (4, 2), (4, 4))),
    *((2, _isp(*sizes)) for sizes in ((1, 2), (2, 1), (2, 2))),
    *((4, _isp(*sizes)) for sizes in ((1, 4), (2, 4), (4, 2), (2, 2))),
]
"""Ranks, and how they share the model: of isp each tensor rank may have other weight ranks, more or fewer."""


EVERY = [(name, *layout) for name in MODELS for layout in LAYOUTS]


@pytest.mark.parametrize(
    ("name", "ranks", "layout"),
    # by turns: every model meets every way to share it, and every layout two models
    [pytest.param(*each, marks=pytest.mark.slow if place % 2 else []) for place, each in enumerate(EVERY)],
    ids=str,
)
def test_they_are_those_of_one_process(name: str, ranks: int, layout: dict[str, Any]) -> None:
    cfg = tiny(vocab_size=64, **MODELS[name])
    one = build_model(cfg)
    init_weights(one, cfg, SEED)
    everyone = run_on_ranks(_drawn, ranks, MODELS[name], layout)
    for held, _ in everyone:
        for parameter, whole in one.named_parameters():
            if layout == {"tensor": 1}:
                assert torch.equal(held[parameter], whole)
                continue
            for piece, view in held[parameter].pieces():
                assert torch.equal(view, piece.where.of(whole.detach())), parameter
    drawn = [parameter for _, names in everyone for parameter in names]
    assert len(drawn) == len(set(drawn))
    counts = [len(names) for _, names in everyone]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("layout", [{"expert": 2}, {"tensor": 2, "expert": 2}, {"experts": 4}], ids=str)
def test_an_expert_is_drawn_by_a_rank_that_has_it(layout: dict[str, Any]) -> None:
    settings = {**MODELS["experts"], "num_experts": 4}
    one = build_model(cfg := tiny(vocab_size=64, **settings))
    init_weights(one, cfg, SEED)
    everyone = run_on_ranks(_drawn, 4, settings, {"experts": 4, **layout})
    drawn = [name for _, names in everyone for name in names]
    assert len(drawn) == len(set(drawn))
    of_experts = [sum("wrapped_experts" in name for name in names) for _, names in everyone]
    assert of_experts == [3 * 4 * cfg.num_layers // 4] * 4
    for name, whole in one.named_parameters():
        pieces = [pair for held, _ in everyone if name in held for pair in held[name].pieces()]
        assert tiling_fault(tuple(whole.shape), {piece.where for piece, _ in pieces}) is None
        for piece, view in pieces:
            assert torch.equal(view, piece.where.of(whole.detach())), name
