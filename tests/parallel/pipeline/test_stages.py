"""A pipeline at work on two ranks: the gradients of one process and of torch's own stages, bit for bit; its memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from evo_core.config import ModelConfig
from evo_core.model import Decoder, ModelOutput
from evo_core.model.stage import Stage
from evo_core.parallel.pipeline.placing import Placing
from tests.parallel.pipeline.jobs import (
    EXPERTS,
    MOE_COEFF,
    Step,
    draws,
    mesh,
    micro_batch,
    of_all_ranks,
    of_one_process,
    small,
    stages_of,
)
from tests.ranks import run_on_ranks

KINDS = {
    "1f1b": ("1F1B", Placing(2), Schedule1F1B),
    "interleaved": ("1F1B", Placing(2, 2), ScheduleInterleaved1F1B),
    "zbh1": ("ZBH1", Placing(2), ScheduleInterleavedZeroBubble),
    "zbv": ("ZBV", Placing(2, 2, is_v=True), ScheduleZBVZeroBubble),
}
"""Schedules by mode and placing, with torch's own."""

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "experts": EXPERTS,
    "tied": {"model_type": "QWEN3", "tie_word_embeddings": True, "embed_grad_scale": 0.5},
    "uneven, recomputed": {"num_layers": 6, "checkpoint": 0.5, "residual_in_fp32": True},
}
COUNTS = (1, 3)

pytestmark = pytest.mark.parity


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit; where nothing came, zeros."""
    assert set(expected) <= set(found)
    for name, gradient in found.items():
        there = expected.get(name)
        assert torch.equal(gradient, torch.zeros_like(gradient) if there is None else there), name


@pytest.mark.parametrize("model", MODELS)
def test_losses_and_gradients_are_those_of_one_process(model: str) -> None:
    cfg = small(**MODELS[model])

    def body() -> dict[tuple[str, bool, int], tuple[list[float], dict[str, Tensor]]]:
        found = {}
        for kind, (mode, placing, _) in KINDS.items():
            for overlap in (True, False):
                step = Step(cfg, placing, mode, overlap=overlap)
                for count in COUNTS:
                    step.backward(count)
                    found[kind, overlap, count] = step.losses, step.gradients()
        return found

    ranks = run_on_ranks(body, 2)
    expected = {count: of_one_process(cfg, count) for count in COUNTS}
    for key in ranks[0]:
        losses, gradients = expected[key[-1]]
        assert [rank[key][0] for rank in ranks if rank[key][0]] == [losses], key
        found = of_all_ranks([rank[key][1] for rank in ranks])
        if model == "tied":  # what embedding and head have of it is added in another order
            expected_tied = gradients["tok_embeddings.weight"]
            assert torch.allclose(found["tok_embeddings.weight"], expected_tied, rtol=0, atol=1e-14)
            gradients = {**gradients, "tok_embeddings.weight": found["tok_embeddings.weight"]}
        assert_same(found, gradients)


class TorchStage(nn.Module):
    """A stage of ours, as torch's own wants it: what differs between micro-batches is stacked."""

    def __init__(self, model: Decoder, stage: Stage) -> None:
        super().__init__()
        self.model, self.stage = model, stage

    def forward(
        self, x: Tensor, *carry: Tensor, number: Tensor, positions: Tensor, cu_seqlens: Tensor, labels: Tensor
    ) -> Any:
        x = x[0] if self.stage.has_embedding else x
        balance = carry[0] if carry else None
        more = {"labels": labels[0], "draws": draws(int(number)), "moe_loss": balance}
        output: ModelOutput = self.model(x, positions[0], cu_seqlens[0], **more, stage=self.stage)
        if self.stage.has_head:
            return output.objective(MOE_COEFF)
        return output.hidden if output.moe_loss is None else (output.hidden, output.moe_loss)


def of_torch(cfg: ModelConfig, kind: str, count: int) -> dict[str, Tensor]:
    """The gradients that torch's stages and schedule make on this rank."""
    _, placing, make = KINDS[kind]
    model = stages_of(cfg, mesh(pipeline=2), placing)
    numbers = placing.stages_of(dist.get_rank())
    wrapped = [
        PipelineStage(TorchStage(model, stage), number, placing.stages, torch.device("cpu"))
        for number, stage in zip(numbers, model.stages, strict=True)
    ]
    schedule: Any = make(
        wrapped[0] if make is Schedule1F1B else wrapped,  # type: ignore[arg-type]
        count,
        loss_fn=lambda output, _: output / count,
        scale_grads=False,
    )
    batches = [micro_batch(number) for number in range(count)]
    more = {
        "number": torch.arange(count),
        "positions": torch.stack([batch.positions for batch in batches]),
        "cu_seqlens": torch.stack([batch.cu_seqlens for batch in batches]),
        "labels": torch.stack([batch.more["labels"] for batch in batches]),
    }
    inputs = (torch.stack([batch.input_ids for batch in batches]),) if 0 in numbers else ()
    target = {"target": more["labels"]} if placing.stages - 1 in numbers else {}
    schedule.step(*inputs, return_outputs=False, **target, **more)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model", ["plain", "experts"])
def test_gradients_are_those_of_torchs_own_stages(model: str) -> None:
    cfg, count = small(**MODELS[model]), 4

    def body() -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        found = {}
        for kind, (mode, placing, _) in KINDS.items():
            step = Step(cfg, placing, mode)
            step.backward(count)
            found[kind] = step.gradients(), of_torch(cfg, kind, count)
        return found

    for rank in run_on_ranks(body, 2):
        for ours, theirs in rank.values():
            assert_same(ours, theirs)


def test_outputs_without_gradients() -> None:
    """Of each schedule's placing, with any number of micro-batches."""
    cfg = small()

    def body() -> list[list[float]]:
        found = []
        for mode, placing, _ in KINDS.values():
            step = Step(cfg, placing, mode)
            for count in (1, 2, 5):
                outputs: list[ModelOutput] = []
                step.pipeline.forward(count, micro_batch, lambda number, output, to=outputs: to.append(output))
                assert bool(outputs) == step.pipeline.has_output
                found.append([float(output.loss) for output in outputs])
            assert all(parameter.grad is None for parameter in step.model.parameters())
        return found

    expected = of_one_process(cfg, 5)[0]
    for one, other in zip(*run_on_ranks(body, 2), strict=True):
        assert one + other == expected[: len(one + other)]


class _Kept:
    """What autograd keeps of a forward pass, one tensor of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # what autograd is given back must not hold on to the graph


class Watch:
    """Which forward passes autograd keeps something of, by stage and micro-batch; the most of them at a time."""

    def __init__(self, model: Decoder) -> None:
        self._kept: dict[tuple[Stage, int], weakref.WeakSet[_Kept]] = {}
        self._passes: dict[Stage, int] = {}
        self._now: tuple[Stage, int] | None = None
        self.most = 0
        model.register_forward_pre_hook(self._begins, with_kwargs=True)
        model.register_forward_hook(self._ends)

    def _begins(self, model: nn.Module, args: Any, settings: dict[str, Any]) -> None:
        stage = settings["stage"]
        self._passes[stage] = self._passes.get(stage, -1) + 1
        self._now = stage, self._passes[stage]
        self._kept[self._now] = weakref.WeakSet()

    def _ends(self, *_: Any) -> None:
        self._now = None
        self.most = max(self.most, self.alive)

    @property
    def alive(self) -> int:
        return sum(bool(kept) for kept in self._kept.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        def pack(tensor: Tensor) -> _Kept:
            kept = _Kept(tensor)
            if self._now is not None:
                self._kept[self._now].add(kept)
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            yield


@pytest.mark.parametrize("count", [2, 7])
def test_as_many_micro_batches_are_alive_as_the_timetable_says(count: int) -> None:
    def body() -> list[tuple[int, int, int]]:
        found = []
        for mode, placing, _ in KINDS.values():
            step = Step(small(), placing, mode)
            watch = Watch(step.model)
            with watch.watching():
                step.backward(count)
            found.append((watch.most, step.pipeline.timetable(count).alive(dist.get_rank()), watch.alive))
        return found

    first, last = run_on_ranks(body, 2)
    for most, said, left in (*first, *last):
        assert (most, left) == (said, 0)
    assert (first[0][0], last[0][0]) == (2, 1)  # 1F1B: stages - rank


def test_a_block_is_run_again_once_however_its_backward_pass_is_cut() -> None:
    def body() -> set[int]:
        runs: dict[tuple[str, str], int] = {}
        for kind, (mode, placing, _) in KINDS.items():
            step = Step(small(checkpoint=True), placing, mode)
            for name, block in step.model.blocks.items():
                key = kind, name
                block.register_forward_pre_hook(lambda *_, key=key: runs.update({key: runs.get(key, 0) + 1}))
            step.backward(1)
        return set(runs.values())

    assert run_on_ranks(body, 2) == [{2}, {2}]
