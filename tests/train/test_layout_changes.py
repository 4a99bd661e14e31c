"""A run that goes on at other layouts, its layers shared by other numbers of ranks, has the losses of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from evo_core.checkpoint import TrainState, load_model
from tests.ranks import run_on_ranks
from tests.train.jobs import job, losses, run


class Leg(NamedTuple):
    """Ranks of which `tensor` share each layer, and how; `zero` of the others share the optimizer's state. Or
    `pipeline` of them have some layers each, in so many chunks. With isp `weight` of them share each weight. Of a
    mixture `expert` data ranks share the experts, all that divide where it is -1."""

    ranks: int
    tensor: int
    zero: int
    mode: str = "mtp"
    pipeline: int = 1
    chunks: int = 1
    schedule: str = "1F1B"
    weight: int = 1
    fsdp: bool = False
    expert: int = -1

    @property
    def parallel(self) -> dict[str, Any]:
        pipeline = {"size": self.pipeline, "mode": self.schedule}
        tensor, weight = {"size": self.tensor, "mode": self.mode}, {"size": self.weight, "overlap": self.weight > 1}
        zero, experts = {"size": self.zero, "fsdp": self.fsdp}, {"expert": self.expert}
        return {"zero1": zero, "tensor": tensor, "pipeline": pipeline, "weight": weight, **experts}


LEGS = [Leg(4, 4, 1), Leg(2, 2, 1, "msp"), Leg(1, 1, 1), Leg(4, 2, 2, "fsp")]
"""Two steps each; the batch is the same, whatever part of it a rank sees."""

FAMILIES: dict[str, dict[str, Any]] = {
    "INTERNLM2_PUBLIC": {"model__num_kv_attention_heads": 1},  # a group, whose key/value head all tensor ranks have
    "QWEN3": {"model__tie_word_embeddings": True},  # three projections, norms of heads; of 4 ranks two share a head
    "INTERNLM_MoE": {"model__num_kv_attention_heads": 4, "model__num_experts": 4, "moe": {"top_k": 2}},  # blocks
}

STAGES = [Leg(2, 1, 1, pipeline=2), Leg(1, 1, 1), Leg(2, 1, 1, pipeline=2, chunks=2), Leg(2, 1, 2)]
"""Two steps each."""

MORE_STAGES = [
    Leg(2, 1, 1, pipeline=2),
    Leg(2, 1, 1, pipeline=2, chunks=2),
    Leg(1, 1, 1),
    Leg(4, 2, 1, "msp", pipeline=2),
    Leg(2, 1, 2),
    Leg(2, 1, 1, pipeline=2, chunks=2, schedule="ZBV"),
    Leg(4, 1, 1, pipeline=4),
    Leg(2, 2, 1),
]
"""One step each."""


ISP = [
    Leg(4, 2, 1, "isp", weight=4),
    Leg(2, 1, 2),
    Leg(4, 4, 2, "isp", weight=2),
    Leg(1, 1, 1),
]
"""Two steps each."""

MORE_ISP = [
    Leg(4, 2, 1, "isp", weight=2, pipeline=2),
    Leg(2, 1, 1, pipeline=2, chunks=2, schedule="ZBV"),
    Leg(2, 2, 1, "isp", weight=2),
    Leg(4, 4, 1, "fsp"),
    Leg(4, 1, 1, "isp", weight=2, pipeline=2, chunks=2),
    Leg(4, 2, 2, "msp"),
    Leg(2, 2, 2, "isp"),
    Leg(2, 2, 1),
]
"""One step each."""

FSDP = [Leg(4, 1, 4, fsdp=True), Leg(2, 1, 2), Leg(4, 1, 2, fsdp=True), Leg(4, 2, 2, "msp", fsdp=True)]
"""Two steps each."""

DENSE = {name: FAMILIES[name] for name in ("INTERNLM2_PUBLIC", "QWEN3")}
DEALT = [Leg(4, 1, 4, expert=4), Leg(1, 1, 1), Leg(2, 1, 2, expert=2)]
"""Two or three steps each."""

MORE_DEALT = [
    Leg(4, 1, 2, expert=2),
    Leg(4, 2, 2, "fsp"),
    Leg(2, 1, 1, expert=1),
    Leg(4, 1, 1, pipeline=2),
    Leg(4, 4, 1, "msp"),
    Leg(4, 1, 4),
    Leg(4, 2, 1, "isp", weight=4),
    Leg(4, 1, 1, pipeline=2, chunks=2, schedule="ZBV"),
]
"""One step each."""

TIED_ENDS = {"LLAMA3": {"model__tie_word_embeddings": True, "model__num_layers": 6}}
"""The weight that both ends have is one in the checkpoint."""

BIASED_EXPERTS = {
    "INTERNLM_MoE": FAMILIES["INTERNLM_MoE"]
    | {
        "model__num_layers": 4,
        "model__moe_use_residual": True,
        "moe": {"top_k": 1, "capacity_factor": 0.5, "min_capacity": 1, "noisy_gate_policy": "RSample"},
    }
}
"""A router that drops tokens."""

BIASES = {"INTERNLM": {"model__num_kv_attention_heads": 4, "model__num_layers": 4}}


def train(folder: Path, leg: Leg, last_step: int, families: dict[str, dict[str, Any]]) -> None:
    """Go on to a step, with one family after the other."""
    for family, settings in families.items():
        own = {"data__total_steps": last_step, "lr_scheduler__total_steps": 8, "parallel": leg.parallel}
        ckpt = {"save_ckpt_folder": str(folder / family / "ckpt"), "auto_resume": True}
        chunks = {"model__num_chunks": leg.chunks} if leg.chunks > 1 else {}
        cfg = job(folder.parent, model_type=family, ckpt=ckpt, **own, **settings, **chunks)
        run(cfg, folder / family)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("legs", "families"),
    [
        pytest.param(LEGS, FAMILIES, id="tensor", marks=pytest.mark.slow),
        pytest.param(STAGES, TIED_ENDS, id="pipeline"),
        pytest.param(MORE_STAGES, TIED_ENDS, id="pipelines", marks=pytest.mark.slow),
        pytest.param(FSDP, DENSE, id="fsdp", marks=pytest.mark.slow),
        pytest.param(ISP, {"INTERNLM_MoE": FAMILIES["INTERNLM_MoE"]}, id="isp", marks=pytest.mark.slow),
        pytest.param(DEALT, {"INTERNLM_MoE": FAMILIES["INTERNLM_MoE"]}, id="experts", marks=pytest.mark.slow),
        pytest.param(MORE_DEALT, BIASED_EXPERTS, id="experts-everywhere", marks=pytest.mark.slow),
        pytest.param(ISP, FAMILIES | BIASES, id="isp-families", marks=pytest.mark.slow),
        pytest.param(MORE_ISP, TIED_ENDS | BIASES, id="isp-pipelines", marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_one_process(tmp_path: Path, legs: list[Leg], families: dict[str, dict[str, Any]]) -> None:
    job(tmp_path)  # writes the data
    run_on_ranks(train, 1, tmp_path / "alone", Leg(1, 1, 1), 8, families)
    for number, leg in enumerate(legs, 1):
        run_on_ranks(train, leg.ranks, tmp_path / "moved", leg, number * 8 // len(legs), families)
    for family in families:
        assert len(losses(tmp_path / "alone" / family)) == 8
        alone, moved = (losses(tmp_path / name / family) for name in ("alone", "moved"))
        assert moved == pytest.approx(alone, rel=1e-12, abs=0), family
        assert TrainState.read(tmp_path / "moved" / family / "ckpt" / "8").moments == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "leg",
    [Leg(2, 2, 1, "isp", weight=2), Leg(2, 2, 2, "isp"), Leg(2, 1, 2, fsdp=True)],
    ids=["weights", "zero", "fsdp"],
)
def test_the_same_layout_goes_on_to_the_same_bits(tmp_path: Path, leg: Leg) -> None:
    """In narrow weights, beside which there are master values."""
    family = {"INTERNLM2_PUBLIC": FAMILIES["INTERNLM2_PUBLIC"] | {"model__dtype": "torch.bfloat16"}}
    job(tmp_path)
    run_on_ranks(train, 2, tmp_path / "whole", leg, 8, family)
    for last_step in (3, 8):
        run_on_ranks(train, 2, tmp_path / "interrupted", leg, last_step, family)
    whole, interrupted = (tmp_path / name / "INTERNLM2_PUBLIC" for name in ("whole", "interrupted"))
    assert losses(interrupted) == losses(whole)
    one, other = (load_model(folder / "ckpt" / "8")[0].state_dict() for folder in (whole, interrupted))
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
