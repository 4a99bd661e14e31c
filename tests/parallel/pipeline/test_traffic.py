"""What a pipeline keeps in memory, what it sends, against formulas, and how often it runs a block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.traffic import handed_on
from evo_core.config import ModelConfig
from evo_core.model.decoder import ModelOutput
from evo_core.model.draws import Draws
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.collectives import counting
from evo_core.parallel.passes import MicroBatch
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.pipeline.stages import Pipeline
from tests.memory import growing
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.parity

TOKENS, HIDDEN, MANY, DOCUMENT = 4096, 64, 32, 128
HIDDEN_STATES = TOKENS * HIDDEN * 4


def model_config(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "model_type": "LLAMA2",
            "num_layers": 4,
            "hidden_size": HIDDEN,
            "num_attention_heads": 1,
            "mlp_ratio": 1.0,
            "vocab_size": 64,
            "dtype": "torch.float32",
            **settings,
        }
    )


def micro_batch(tokens: int) -> MicroBatch:
    """Documents of one length."""
    ends = torch.arange(0, tokens + 1, DOCUMENT, dtype=torch.int32)
    more = {"labels": torch.arange(tokens) % 64, "max_seqlen": DOCUMENT, "draws": Draws(0, 0, 0)}
    return MicroBatch(torch.arange(tokens) % 64, torch.arange(tokens) % DOCUMENT, ends, more)


def pipeline_of(cfg: ModelConfig, placing: Placing, mode: str = "1F1B") -> Pipeline:
    mesh = mesh_of(pipeline=placing.ranks)
    model: Any = build_parallel(cfg, mesh, "cpu", placing=placing)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return Pipeline(model, mesh.pipeline, placing, mode=mode)


def outputs_of_many() -> int:
    """Bytes by which this rank grows while many micro-batches go through."""
    pipeline, batch = pipeline_of(model_config(num_layers=2, use_swiglu=False), Placing(2)), micro_batch(TOKENS)

    def take(number: int, output: ModelOutput) -> None:
        assert output.loss is not None

    pipeline.forward(4, lambda _: batch, take)
    with growing() as grown:
        pipeline.forward(MANY, lambda _: batch, take)
    return grown.peak


def test_what_was_sent_does_not_stay_to_the_end_of_the_passes() -> None:
    assert run_on_ranks(outputs_of_many, 2)[0] < MANY / 2 * HIDDEN_STATES


class LeftAlone:
    """In place of an optimizer: gradients stay where the passes leave them."""

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def final(self, parameters: object) -> None: ...

    def collect(self) -> None: ...


def take_step(pipeline: Pipeline, count: int) -> None:
    batch, optimizer = micro_batch(DOCUMENT), LeftAlone()
    passes: Any = pipeline
    passes.forward_backward(count, lambda _: batch, lambda _, output: output.objective(0.1), optimizer)


def sent(cfg: ModelConfig, placing: Placing, mode: str, count: int) -> tuple[int, int]:
    """Bytes that this rank sends in a step, counted and by formula."""
    pipeline = pipeline_of(cfg, placing, mode)
    with counting() as traffic:
        take_step(pipeline, count)
    return traffic.bytes["send"], handed_on(cfg, placing, dist.get_rank(), count, DOCUMENT, element=4)


SCHEDULES = pytest.mark.parametrize(
    ("placing", "mode"),
    [(Placing(2), "1F1B"), (Placing(2, 2), "1F1B"), (Placing(2), "ZBH1"), (Placing(2, 2, is_v=True), "ZBV")],
    ids=["1F1B", "interleaved", "ZBH1", "ZBV"],
)


@SCHEDULES
def test_a_stage_sends_as_much_as_the_formula_says(placing: Placing, mode: str) -> None:
    moe = model_config(model_type="INTERNLM_MoE", num_experts=2, moe_type="GShard")
    for cfg in (model_config(), moe):
        for counted, formula in run_on_ranks(sent, 2, cfg, placing, mode, 3):
            assert counted == formula > 0


def runs_of_blocks(placing: Placing, mode: str, count: int) -> list[int]:
    """How often each block of this rank runs in a step, all of them recomputed."""
    pipeline = pipeline_of(model_config(checkpoint=1.0), placing, mode)
    runs = dict.fromkeys(pipeline.model.blocks, 0)

    def note(number: str) -> None:
        runs[number] += 1

    for number, block in pipeline.model.blocks.items():
        block.register_forward_pre_hook(lambda *_, number=number: note(number))
    take_step(pipeline, count)
    return list(runs.values())


@SCHEDULES
def test_a_recomputed_block_runs_once_more_however_many_parts_a_backward_pass_has(placing: Placing, mode: str) -> None:
    assert run_on_ranks(runs_of_blocks, 2, placing, mode, 3) == [[6, 6], [6, 6]]


def exchanged(mode: str, schedule: str) -> dict[str, int]:
    """Bytes by collective that a rank of two tensor ranks on two stages sends in a step, blocks recomputed in part."""
    mesh, placing = mesh_of(pipeline=2, tensor=2), Placing(2)
    cfg = model_config(num_attention_heads=2, checkpoint=0.5)
    model: Any = build_parallel(cfg, mesh, "cpu", placing=placing, mode=mode)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    with counting() as traffic:
        take_step(Pipeline(model, mesh.pipeline, placing, mode=schedule), 2)
    return dict(traffic.bytes)


@pytest.mark.parametrize("mode", ["mtp", "msp", "fsp"])
def test_a_backward_pass_in_parts_sends_no_more_between_tensor_ranks(mode: str) -> None:
    whole, parts = (run_on_ranks(exchanged, 4, mode, schedule) for schedule in ("1F1B", "ZBH1"))
    assert parts == whole and set(whole[0]) >= {"send", "all_gather"}
