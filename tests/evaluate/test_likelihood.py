"""Log-likelihoods of continuations against logits of one sequence at a time, in packs and over ranks."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from evo_core.errors import DataError
from evo_core.evaluate.likelihood import Continuation, likelihoods
from evo_core.model import build_model
from tests.model.configs import randomise, tiny
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

READS = 24


def _model() -> nn.Module:
    model = build_model(tiny(dtype="torch.float64"))
    randomise(model)
    return model


def _continuations(count: int) -> list[Continuation]:
    random_ids = random.Random(0)

    def ids(longest: int) -> list[int]:
        return [random_ids.randrange(61) for _ in range(random_ids.randint(1, longest))]

    return [Continuation(ids(30), ids(8)) for _ in range(count)]


@torch.no_grad()
def _by_hand(model: nn.Module, continuation: Continuation) -> tuple[float, bool]:
    whole = [*continuation.context, *continuation.ids][-(READS + 1) :]
    n = len(whole) - 1
    logits = model(torch.tensor(whole[:-1]), torch.arange(n), torch.tensor([0, n], dtype=torch.int32)).logits
    total, greedy = 0.0, True
    for place, token in enumerate(continuation.ids, n - len(continuation.ids)):
        total += float(torch.log_softmax(logits[place], -1)[token])
        greedy &= int(logits[place].argmax()) == token
    return total, greedy


@pytest.mark.parametrize("pack_tokens", [1, 50, 10_000])
def test_against_logits(pack_tokens: int) -> None:
    model = _model()
    model.train()
    continuations = _continuations(20)
    # One that greedy decoding gives, so that both answers occur.
    context = [5, 6, 7]
    logits = model(torch.tensor(context), torch.arange(3), torch.tensor([0, 3], dtype=torch.int32)).logits
    continuations.append(Continuation(context, [int(logits[-1].argmax())]))
    calls: list[tuple[int, int]] = []
    found = likelihoods(
        model,
        continuations,
        max_length=READS,
        pack_tokens=pack_tokens,
        on_pack=lambda done, total: calls.append((done, total)),
    )
    assert model.training
    expected = [_by_hand(model, continuation) for continuation in continuations]
    for one, (log_probability, is_greedy) in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(log_probability, rel=1e-10)
        assert one.is_greedy is is_greedy
    assert {greedy for _, greedy in expected} == {True, False}
    assert calls[-1][0] == calls[-1][1] == (1 if pack_tokens == 10_000 else len(calls))


def test_ranks_give_the_same_bits() -> None:
    def part() -> Any:
        return likelihoods(_model(), _continuations(17), max_length=READS, pack_tokens=40, mesh=mesh_of(1))

    one = run_on_ranks(part, 1)[0]
    assert run_on_ranks(part, 3) == [one] * 3


@pytest.mark.parametrize(
    ("context", "ids", "complaint"),
    [([], [1], "no context"), ([1], [], "no tokens"), ([1], [2] * (READS + 1), "25 tokens, above 24")],
)
def test_what_cannot_be_scored(context: list[int], ids: list[int], complaint: str) -> None:
    with pytest.raises(DataError, match=f"continuation 1 .*{complaint}"):
        likelihoods(_model(), [Continuation([1], [2]), Continuation(context, ids)], max_length=READS)
