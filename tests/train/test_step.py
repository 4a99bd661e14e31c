"""The passes of a step: losses, gradients and sums are those of a loop written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from evo_core.checkpoint import TrainState
from evo_core.config import TrainConfig
from evo_core.data import Batch, open_source
from evo_core.evaluate.holdout import holdout
from evo_core.model import build_model, init_weights
from evo_core.parallel.mesh import Mesh, make_mesh
from evo_core.train.chance import draws_of_micro_batch
from evo_core.train.checkpointing import Asked
from evo_core.train.metrics import segments
from evo_core.train.optimizer import make_optimizer
from evo_core.train.step import TrainStep
from evo_core.train.throughput import Throughput
from tests.ranks import run_on_ranks
from tests.train.jobs import job

EXPERTS = {"model_type": "INTERNLM_MoE", "model__num_experts": 4, "model__num_kv_attention_heads": 4}
CPU = torch.device("cpu")


class PlainGradients:
    """Leaves gradients where backward puts them: `forward_backward` asks no more of an optimizer than this."""

    def settle(self) -> None:
        """Nothing is under way."""

    def __init__(self) -> None:
        self.last: list[bool] = []

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.last.append(last)
        loss.backward()


def made(cfg: TrainConfig) -> nn.Module:
    model = build_model(cfg.model)
    init_weights(model, cfg.model, cfg.seed)
    return model


def step_of(cfg: TrainConfig, mesh: Mesh, model: nn.Module, optimizer: Any) -> TrainStep:
    speed = Throughput.of(cfg, world_size=1, dp=1)
    return TrainStep(cfg, mesh, model, optimizer, speed=speed, types=("cn", "code", "en"), device=CPU)


def written_out(cfg: TrainConfig, batch: Batch, number: int) -> tuple[float, float, nn.Module]:
    """Loss, balance loss and gradients of a step as one mean over its micro-batches."""
    model = made(cfg)
    losses, balances = [], []
    for i in range(batch.micro_num):
        draws = draws_of_micro_batch(model, cfg.seed, number, i, batch.input_ids.shape[1])
        arguments = (batch.input_ids[i], batch.positions[i], batch.cu_seqlens[i])
        output = model(*arguments, labels=batch.labels[i], label_smoothing=cfg.loss.label_smoothing, **draws)
        losses.append(output.loss)
        balances.append(torch.zeros(()) if output.moe_loss is None else output.moe_loss)
    loss, balance = torch.stack(losses).mean(), torch.stack(balances).mean()
    (loss + cfg.loss.moe_loss_coeff * balance).backward()
    return loss.item(), balance.item(), model


@pytest.mark.parametrize(
    "settings",
    [{"loss__label_smoothing": 0.1, "model__drop_rate": 0.1}, EXPERTS | {"loss__moe_loss_coeff": 0.5}],
    ids=["smoothing and dropout", "experts"],
)
def test_forward_backward_gives_loss_and_gradients_of_the_plain_loop(tmp_path: Path, settings: dict[str, Any]) -> None:
    cfg = job(tmp_path, **settings)
    batch = open_source(cfg, dp_rank=0, dp_size=1).draw(3)[0]
    loss, balance, expected = written_out(cfg, batch, 3)

    def body() -> None:
        model, optimizer = made(cfg), PlainGradients()
        step = step_of(cfg, make_mesh(cfg.degrees(1)), model, optimizer)
        totals = step.forward_backward(batch, 3, segments(batch.cu_seqlens)["largest_length"])
        assert optimizer.last == [False] * (batch.micro_num - 1) + [True]
        assert totals.loss == pytest.approx(loss, rel=1e-13)
        assert totals.moe(1).get("moe_loss", 0.0) == pytest.approx(balance, rel=1e-13)
        targets = sum(value for name, value in totals.quality().items() if name.startswith("tokens/"))
        assert targets == int((batch.labels != -100).sum())
        for (name, got), one in zip(model.named_parameters(), expected.parameters(), strict=True):
            assert got.grad is not None and one.grad is not None
            torch.testing.assert_close(got.grad, one.grad, rtol=1e-11, atol=1e-15, msg=name)

    run_on_ranks(body, 1)


def test_training_on_a_batch_notes_the_update_and_what_all_ranks_heard(tmp_path: Path) -> None:
    cfg = job(tmp_path)

    def body() -> list[float]:
        mesh, model = make_mesh(cfg.degrees(2)), made(cfg)
        step = step_of(cfg, mesh, model, make_optimizer(cfg, model, mesh))
        batch = open_source(cfg, dp_rank=dist.get_rank(), dp_size=2).draw(0)[0]
        asked = Asked(stop=dist.get_rank() == 1, stop_file=7 if dist.get_rank() == 0 else 0)
        state = TrainState()
        skipped = step.skip(batch, state)
        assert (skipped.loss, skipped.asked, state) == (None, Asked(), TrainState())
        record = step.train(batch, state, asked, began=0.0)
        assert record.asked == Asked(stop=True, stop_file=7)
        assert (state.updates, state.skipped_updates, state.loss) == (1, 0, record.loss)
        assert record.measured is not None
        return [record.measured.loss, record.measured.grad_norm]

    one, other = run_on_ranks(body, 2)
    assert one == other


def test_evaluate_gives_the_held_out_scores_as_fields(tmp_path: Path) -> None:
    cfg = job(tmp_path)

    def body() -> None:
        model = made(cfg)
        step = step_of(cfg, make_mesh(cfg.degrees(1)), model, PlainGradients())
        fields = step.evaluate()
        scores = holdout(model, cfg.data.valid_folder, seq_len=cfg.data.seq_len, vocab_size=cfg.model.vocab_size)
        assert len(fields) == 3 * len(scores) == 9
        for name, score in scores.items():
            got = [fields[f"val/{name}_{what}"] for what in ("loss", "acc", "plex")]
            assert got == [score["loss"], score["acc"], score["perplexity"]]

    run_on_ranks(body, 1)
