"""What the optimizer makes of a schedule's gradients, in whatever way they come: sums, their type, when it reduces."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.errors import ConfigError
from evo_core.model import Decoder
from evo_core.optim.loss_scaler import LossScaler
from evo_core.parallel.pipeline.orders import Pass, Work
from evo_core.parallel.pipeline.placing import Placing
from tests.parallel.pipeline.jobs import MOE_COEFF, Step, micro_batch, of_all_ranks, of_one_process, small, whole_model
from tests.ranks import run_on_ranks

KINDS = {
    "1f1b": ("1F1B", Placing(2)),
    "interleaved": ("1F1B", Placing(2, 2)),
    "zbh1": ("ZBH1", Placing(2)),
    "zbv": ("ZBV", Placing(2, 2, is_v=True)),
}
LR, BETA2 = 0.02, 0.95

pytestmark = pytest.mark.parity


def of_each_kind(body: Callable[[str, Placing], Any], ranks: int = 2) -> list[dict[str, Any]]:
    """What a function of mode and placing gives for each schedule, by rank."""
    return run_on_ranks(lambda: {kind: body(*settings) for kind, settings in KINDS.items()}, ranks)


def test_gradients_of_bfloat16_are_added_up_in_float32() -> None:
    cfg, count = small(dtype="torch.bfloat16"), 5

    def body(mode: str, placing: Placing) -> tuple[torch.dtype, dict[str, Tensor]]:
        step = Step(cfg, placing, mode)
        step.backward(count)
        return step.optimizer.dtype, step.gradients()

    expected: dict[str, Tensor] = {}
    rounded: dict[str, Tensor] = {}
    model = whole_model(cfg)
    for number in range(count):
        batch = micro_batch(number)
        output = model(batch.input_ids, batch.positions, batch.cu_seqlens, **batch.more)
        (output.objective(MOE_COEFF) / count).backward()
        for name, parameter in model.named_parameters():
            expected[name] = expected[name] + parameter.grad.float() if name in expected else parameter.grad.float()
            rounded[name] = rounded[name] + parameter.grad if name in rounded else parameter.grad
        model.zero_grad()
    ranks = of_each_kind(body)
    for kind in KINDS:
        assert {rank[kind][0] for rank in ranks} == {torch.float32}
        found = of_all_ranks([rank[kind][1] for rank in ranks])
        assert set(found) == set(expected)
        for name, gradient in found.items():
            assert torch.equal(gradient, expected[name]), (kind, name)
            assert not torch.equal(gradient, rounded[name].float()), "this cannot tell one from the other"


def test_a_bucket_is_reduced_with_the_pass_that_makes_its_last_gradient() -> None:
    """Neither before, with parts missing, nor only after the schedule."""

    def body(mode: str, placing: Placing) -> list[tuple[int, int]]:
        step = Step(small(), placing, mode)
        optimizer, count = step.optimizer, 4
        steps = step.pipeline.timetable(count).steps[dist.get_rank()]
        backward = [work for work in steps if isinstance(work, Work) and work.kind is not Pass.FORWARD]
        last = {
            id(parameter): number
            for number, work in enumerate(backward)
            if work.kind is not Pass.INPUT
            for parameter in step.pipeline.parameters[work.stage]
        }
        reduced: dict[int, int] = {}
        final, now = optimizer.final, -1

        def counted(parameters: Any) -> None:
            nonlocal now
            now += 1
            final(parameters)

        def noted(bucket: Any) -> Callable[[], None]:
            reduce = bucket.reduce

            def note() -> None:
                reduced[id(bucket)] = now
                reduce()

            return note

        optimizer.final = counted  # type: ignore[method-assign]
        for bucket in optimizer.buckets:
            bucket.reduce = noted(bucket)  # type: ignore[method-assign]
        step.backward(count)
        due, expected = -1, []
        for bucket in optimizer._turns:  # in this order on every rank, so that one may wait for another
            due = max(due, *(last[id(slot.param)] for slot in bucket.slots))
            expected.append((reduced[id(bucket)], due))
        return expected

    seen = of_each_kind(body)
    for kind, rank in itertools.product(KINDS, seen):
        assert all(reduced == due for reduced, due in rank[kind]), (kind, rank[kind])
    assert len({due for _, due in seen[1]["interleaved"]}) > 1  # the last chunk's are due before the first one's


def test_a_gradient_behind_the_last_is_refused_and_not_left_out() -> None:
    def body(mode: str, placing: Placing) -> str:
        step = Step(small(), placing, mode)
        steps = step.pipeline.timetable(4).steps[dist.get_rank()]
        every = {work: step.pipeline.parameters[work.stage] for work in steps if isinstance(work, Work)}
        step.pipeline._last_passes = lambda steps: every  # type: ignore[method-assign, assignment]
        try:
            step.backward(4)
        except Exception as error:
            return str(error)
        return ""

    for rank in of_each_kind(body):
        assert all("came in parts" in said for said in rank.values()), rank


def freeze(model: Decoder, *parts: str) -> None:
    for name, parameter in model.named_parameters():
        if any(part in name for part in parts):
            parameter.requires_grad_(False)


@pytest.mark.parametrize(
    "frozen",
    [
        ("tok_embeddings", "layers.0.", "layers.1.attention"),  # of a first stage, at most one block's rest is trained
        ("tok_embeddings", "layers.0."),  # all of the first of four stages
        ("layers.2.", "layers.3.", "output"),  # all of a last stage but its norm
    ],
    ids=["first", "first chunk", "last"],
)
def test_what_is_frozen_has_no_gradient_and_the_rest_its_own(frozen: tuple[str, ...]) -> None:
    cfg = small()

    def body(mode: str, placing: Placing) -> tuple[float, dict[str, Tensor]]:
        step = Step(cfg, placing, mode, prepare=lambda model: freeze(model, *frozen))
        return step.backward(3), step.gradients()

    expected = of_one_process(cfg, 3, prepare=lambda model: freeze(model, *frozen))[1]
    norm = float(torch.stack([gradient.square().sum() for gradient in expected.values()]).sum().sqrt())
    ranks = of_each_kind(body)
    for kind in KINDS:
        found = of_all_ranks([rank[kind][1] for rank in ranks])
        assert set(found) == set(expected)
        for name in found:  # to the last digit: how a matrix product rounds depends on where its operands lie
            torch.testing.assert_close(found[name], expected[name], rtol=1e-13, atol=1e-16, msg=f"{kind} {name}")
        assert [rank[kind][0] for rank in ranks] == [pytest.approx(norm, rel=1e-13)] * 2


def test_the_loss_scale_is_divided_out_and_an_overflow_skips_the_update_on_every_stage() -> None:
    cfg = small()

    def body(mode: str, placing: Placing) -> Any:
        plain, scaled = (
            Step(cfg, placing, mode, scaler=LossScaler(scale=scale, hysteresis=1)) for scale in (1.0, 2.0**10)
        )
        assert plain.backward(3) == scaled.backward(3)
        ours, theirs = plain.gradients(), scaled.gradients()
        same = all(torch.equal(ours[name], theirs[name]) for name in ours)
        before = [parameter.detach().clone() for parameter in scaled.model.parameters()]
        scaled.backward(3, scale=float("inf"))
        updated = scaled.optimizer.step(LR, BETA2)
        unchanged = all(torch.equal(a, b) for a, b in zip(before, scaled.model.parameters(), strict=True))
        scaled.backward(3)  # and nothing of it is left
        return same, updated, unchanged, scaled.optimizer.scaler.scale, scaled.optimizer.step(LR, BETA2)

    for rank in of_each_kind(body):
        assert set(rank.values()) == {(True, False, True, 2.0**9, True)}


TIED: dict[str, Any] = {"model_type": "LLAMA3", "tie_word_embeddings": True, "embed_grad_scale": 0.5, "vocab_size": 64}
NAME = "tok_embeddings.weight"


@pytest.mark.parametrize(
    ("mode", "placing", "others"),
    [
        ("1F1B", Placing(4), {}),  # the stages between have nothing of it
        ("ZBH1", Placing(4), {}),
        ("1F1B", Placing(2, 2), {"zero1": 2}),
        ("1F1B", Placing(2), {"tensor": 2}),  # each end has half of the vocabulary
    ],
    ids=["four stages", "four stages, zero-bubble", "zero", "tensor"],
)
def test_a_tied_weight_stays_the_same_at_both_ends_and_counts_once(
    mode: str, placing: Placing, others: dict[str, int]
) -> None:
    cfg, count = small(**TIED), 4

    def body() -> tuple[list[float], tuple[int, ...], Tensor | None]:
        def differently(model: Decoder) -> None:
            """The optimizer gives both ends what the first one has."""
            if model.embedding is not None and not model.stages[0].has_embedding:
                model.embedding.weight.data.add_(0.1)

        step = Step(cfg, placing, mode, prepare=differently, **others)
        norms = []
        for _ in range(3):
            norms.append(step.backward(count // step.mesh.data.size))
            assert step.optimizer.step(LR, BETA2)
        embedding = step.model.embedding
        tied = None if embedding is None else embedding.weight.detach().clone()
        return norms, step.mesh.pipeline.ranks, tied

    results = run_on_ranks(body, 4)
    gradients = of_one_process(cfg, count)[1]
    norm = float(torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt())
    (norms,) = {tuple(norms) for norms, _, _ in results}
    assert norms[0] == pytest.approx(norm, rel=1e-13)
    for rank, (_, ranks, tied) in enumerate(results):
        if rank in (ranks[0], ranks[-1]):
            there = results[ranks[0]][2]
            assert tied is not None and there is not None and torch.equal(tied, there)
        else:
            assert tied is None


def test_a_stage_without_trained_parameters_is_refused_on_every_rank() -> None:
    def body() -> str:
        with pytest.raises(ConfigError) as caught:
            Step(small(), Placing(2), "1F1B", prepare=lambda model: model.requires_grad_(model.norm is not None))
        return str(caught.value)

    first, last = run_on_ranks(body, 2, timeout=30)
    assert first == last and first.startswith("model_type: no parameter of this model is trained on rank 0 (")
