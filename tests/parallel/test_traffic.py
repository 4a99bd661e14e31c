"""What each mode of tensor parallelism and isp send, against the formulas, and what is kept for the backward pass."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from benchmarks.traffic import kept, sent, sent_by_isp
from evo_core.config import ModelConfig
from evo_core.model import Decoder
from evo_core.model.draws import Draws
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.collectives import counting
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.parity

MODES = ("mtp", "msp", "fsp")
TOKENS, HIDDEN, LAYERS = 24, 32, 3
SETTINGS: list[dict[str, Any]] = [
    {},
    {"dtype": "torch.float64", "checkpoint": 0.5},
    {"dtype": "torch.bfloat16", "embed_split_hidden": False},
    {"parallel_output": False, "use_swiglu": False},
    {"model_type": "INTERNLM2_PUBLIC", "tie_word_embeddings": True, "checkpoint": 1.0},
    {"drop_rate": 0.1, "checkpoint": 1.0},
    {"apply_post_layer_norm": True, "checkpoint": 1.0},
]


class Step(NamedTuple):
    """Of one model: bytes sent, and kept of the forward pass."""

    sent: Counter[str]
    formula: Counter[str]
    kept: int


def model_config(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "model_type": "LLAMA2",
            "num_layers": LAYERS,
            "hidden_size": HIDDEN,
            "num_attention_heads": 4,
            "num_kv_attention_heads": 2,
            "vocab_size": 64,
            "dtype": "torch.float32",
            **settings,
        }
    )


def built(cfg: ModelConfig, mode: str) -> Decoder:
    return initialised(build_parallel(cfg, mesh_of(tensor=dist.get_world_size()), "cpu", mode=mode))


def initialised(model: torch.nn.Module) -> Decoder:
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def loss_of(model: Decoder) -> torch.Tensor:
    ids = torch.arange(TOKENS + 1) % model.cfg.vocab_size
    positions, ends = torch.arange(TOKENS), torch.tensor([0, 5, TOKENS], dtype=torch.int32)
    part, parts = model.rows
    draws = Draws(1, 0, 0, start=part * TOKENS // parts, tokens=TOKENS)
    loss = model(ids[:-1], positions, ends, labels=ids[1:], draws=draws).loss
    assert loss is not None
    return loss


def step(cfg: ModelConfig, mode: str) -> Step:
    model = built(cfg, mode)
    with counting() as traffic:
        loss_of(model).backward()
    formula = sent(cfg, mode, dist.get_world_size(), TOKENS, element=model.dtype.itemsize)
    return Step(traffic.bytes, formula, kept(model, lambda: loss_of(model)))


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_sent_is_the_formula(ranks: int) -> None:
    def steps() -> list[Step]:
        return [step(model_config(**settings), mode) for settings in SETTINGS for mode in MODES]

    cases = [(settings, mode) for settings in SETTINGS for mode in MODES]
    for rank in run_on_ranks(steps, ranks):
        for case, found in zip(cases, rank, strict=True):
            assert found.sent == found.formula, case


@pytest.mark.parametrize(
    ("ranks", "cases"),
    [
        pytest.param(
            2, [(settings, *size) for settings in SETTINGS for size in ((1, 2), (2, 1), (2, 2))], marks=pytest.mark.slow
        ),
        (4, [(settings, 4 - 2 * (n % 2), 2 + 2 * (n % 2)) for n, settings in enumerate(SETTINGS)]),
    ],
    ids=["2", "4"],
)
def test_what_isp_sends_is_the_formula(ranks: int, cases: list[tuple[dict[str, Any], int, int]]) -> None:

    def of_case(settings: dict[str, Any], tensor: int, weight: int) -> tuple[Counter[str], Counter[str]]:
        cfg = model_config(**settings)
        mesh = mesh_of(tensor={"size": tensor, "mode": "isp"}, weight=weight)
        model = initialised(build_parallel(cfg, mesh, "cpu", overlap=True))
        with counting() as traffic:
            loss_of(model).backward()
        formula = sent_by_isp(cfg, tensor, weight, TOKENS, element=model.dtype.itemsize)
        return traffic.bytes, sum(formula.values(), Counter())

    for rank in run_on_ranks(lambda: [of_case(*case) for case in cases], ranks):
        for case, (found, formula) in zip(cases, rank, strict=True):
            assert found == formula, case


def test_msp_keeps_less_than_mtp_and_fsp_the_gathered_inputs_less() -> None:
    def steps() -> list[int]:
        return [step(model_config(), mode).kept for mode in MODES]

    for mtp, msp, fsp in run_on_ranks(steps, 2):
        assert fsp < msp < mtp
        # Two gathered inputs a block, of which half the rows are another rank's. One norm more reads rows of its own.
        assert msp - fsp == LAYERS * 2 * TOKENS // 2 * HIDDEN * 4
        assert mtp - msp == (LAYERS * 2 + 1) * TOKENS // 2 * (HIDDEN + 1) * 4
