"""A run that goes on at other layouts, its layers shared by other numbers of ranks, has the losses of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from evo_core.checkpoint import TrainState
from tests.ranks import run_on_ranks
from tests.train.jobs import job, losses, run


class Leg(NamedTuple):
    """Ranks of which `tensor` share each layer, and how; `zero` of the others share the optimizer's state."""

    ranks: int
    tensor: int
    zero: int
    mode: str = "mtp"

    @property
    def parallel(self) -> dict[str, Any]:
        return {"zero1": self.zero, "tensor": {"size": self.tensor, "mode": self.mode}}


LEGS = [Leg(4, 4, 1), Leg(2, 2, 1, "msp"), Leg(1, 1, 1), Leg(4, 2, 2, "fsp")]
"""Two steps each; the batch is the same, whatever part of it a rank sees."""

FAMILIES: dict[str, dict[str, Any]] = {
    "INTERNLM2_PUBLIC": {"model__num_kv_attention_heads": 1},  # a group, whose key/value head all tensor ranks have
    "QWEN3": {"model__tie_word_embeddings": True},  # three projections, norms of heads; of 4 ranks two share a head
    "INTERNLM_MoE": {"model__num_kv_attention_heads": 4, "model__num_experts": 4, "moe": {"top_k": 2}},  # blocks
}


@pytest.mark.parity
def test_losses_are_those_of_one_process(tmp_path: Path) -> None:
    def train(leg: Leg, last_step: int, name: str) -> None:
        for family, settings in FAMILIES.items():
            own = {"data__total_steps": last_step, "lr_scheduler__total_steps": 8, "parallel": leg.parallel}
            ckpt = {"save_ckpt_folder": str(tmp_path / name / family / "ckpt"), "auto_resume": True}
            cfg = job(tmp_path, model_type=family, ckpt=ckpt, **own, **settings)
            run(cfg, tmp_path / name / family)

    job(tmp_path)  # writes the data
    run_on_ranks(train, 1, Leg(1, 1, 1), 8, "alone")
    for number, leg in enumerate(LEGS, 1):
        run_on_ranks(train, leg.ranks, leg, 2 * number, "moved")
    for family in FAMILIES:
        assert len(losses(tmp_path / "alone" / family)) == 8
        alone, moved = (losses(tmp_path / name / family) for name in ("alone", "moved"))
        assert moved == pytest.approx(alone, rel=1e-12, abs=0), family
        assert TrainState.read(tmp_path / "moved" / family / "ckpt" / "8").moments == 8
