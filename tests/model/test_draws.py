"""What a forward pass in training draws: a function of its place, however a model is cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_core.model import Decoder, build_model
from evo_core.model.draws import Draws, LayerDraws
from evo_core.model.ops.documents import Documents
from tests.model.configs import packed, randomise, relative_error, tiny

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
ONES = torch.ones(40, 6, dtype=torch.float64)
DRAWN: dict[str, Callable[[LayerDraws], Tensor]] = {
    "dropout": lambda draws: draws.dropout(ONES, 0.5, "a"),
    "jitter": lambda draws: draws.jitter(ONES, 0.01, "a"),
    "gumbel": lambda draws: draws.gumbel(ONES, "a"),
    "order": lambda draws: draws.order(ONES, "a"),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_each_place_has_numbers_of_its_own(kind: str) -> None:
    draw = DRAWN[kind]
    places = list(itertools.product((1, 11), (0, 1), (0, 1, 11), (0, 1)))
    drawn = {tuple(draw(Draws(*place[:3]).layer(place[3])).flatten().tolist()) for place in places}
    assert len(drawn) == len(places)
    torch.manual_seed(5)
    again = {tuple(draw(Draws(*place[:3]).layer(place[3])).flatten().tolist()) for place in reversed(places)}
    assert again == drawn


def test_two_sites_of_a_layer_draw_apart() -> None:
    draws = Draws(1, 2, 3).layer(4)
    first = draws.dropout(ONES, 0.5, "attention")
    assert not torch.equal(first, draws.dropout(ONES, 0.5, "mlp"))
    assert torch.equal(first, draws.dropout(ONES, 0.5, "attention"))


@pytest.mark.parametrize("kind", ["dropout", "jitter", "gumbel"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parts_of_a_sequence_draw_what_the_whole_draws_there(kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(dtype)

    def drawn(draws: Draws, rows: Tensor) -> Tensor:
        layer = draws.layer(2)
        return {
            "dropout": lambda: layer.dropout(rows, 0.25, "a"),
            "jitter": lambda: layer.jitter(rows, 0.01, "a"),
            "gumbel": lambda: layer.gumbel(rows, "a"),
        }[kind]()

    whole = drawn(Draws(1, 2, 3), x)
    parts = [drawn(Draws(1, 2, 3, start=start, tokens=40), x[start : start + n]) for start, n in ((0, 13), (13, 27))]
    assert torch.equal(torch.cat(parts), whole)
    # A process that holds a part may gather all rows, as for a router: then it draws for all.
    assert torch.equal(drawn(Draws(1, 2, 3, start=13, tokens=40), x), whole)


def test_rows_that_are_no_part_of_the_sequence_are_refused() -> None:
    with pytest.raises(ValueError, match="30 rows from row 20 on are no part of a sequence of 40"):
        Draws(1, 2, 3, start=20, tokens=40).layer(0).dropout(ONES[:30], 0.5, "a")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dropout_keeps_the_mean_and_its_gradient_has_the_same_holes(device: str, dtype: torch.dtype) -> None:
    x = torch.full((500, 40), 3.0, device=device, dtype=dtype, requires_grad=True)
    y = Draws(1, 2, 3).layer(0).dropout(x, 0.2, "a")
    assert y.dtype == dtype
    assert (y == 0).double().mean().item() == pytest.approx(0.2, abs=0.01)
    assert relative_error(y[y != 0], torch.full_like(y[y != 0], 3 / 0.8)) < 0.01
    y.backward(torch.full_like(y, 2.0))
    assert torch.equal(x.grad == 0, y == 0)
    assert relative_error(x.grad[y != 0], torch.full_like(y[y != 0], 2 / 0.8)) < 0.01
    assert not Draws(1, 2, 3).layer(0).dropout(x, 1.0, "a").any()


def test_noise_and_order_have_their_distributions() -> None:
    draws, rows = Draws(1, 2, 3).layer(0), torch.ones(20_000, 3, dtype=torch.float64)
    assert draws.gumbel(rows, "a").mean().item() == pytest.approx(0.5772, abs=0.02)
    assert draws.gumbel(rows, "a").var().item() == pytest.approx(torch.pi**2 / 6, rel=0.03)
    jittered = draws.jitter(rows, 0.01, "a")
    assert 0.99 <= jittered.min().item() < 0.9901 < 1.0099 < jittered.max().item() <= 1.01
    assert sorted(draws.order(rows, "a").tolist()) == list(range(20_000))


DROPOUT = {"drop_rate": 0.2, "num_layers": 3, "dtype": "float64"}


def model_of(**settings: Any) -> Decoder:
    model = build_model(tiny(**{**DROPOUT, **settings}))
    randomise(model)
    return model


@pytest.mark.parametrize("share", [False, 0.5, True])
@pytest.mark.parametrize("settings", [{}, {"attn_drop_rate": 0.3}], ids=["residual", "attention too"])
def test_a_recomputed_forward_draws_the_same_whatever_was_drawn_in_between(
    share: Any, settings: dict[str, Any]
) -> None:
    batch, results = packed([5, 1, 9, 2]), []
    for recomputed in (False, share):
        model = model_of(**settings, checkpoint=recomputed)
        losses = [model(**batch, draws=Draws(1, 2, number)).loss for number in (0, 1)]  # as a pipeline holds several
        torch.randn(17)
        sum(losses).backward()
        results.append([*losses, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_two_halves_of_a_sequence_lose_what_the_whole_loses() -> None:
    model, batch = model_of(), packed([20, 30, 50])
    whole = model(**batch, draws=Draws(1, 2, 3)).nll
    halves = []
    for part in (slice(0, 50), slice(50, 100)):
        own = {name: batch[name][part] for name in ("input_ids", "positions", "labels")}
        cuts = batch["cu_seqlens"][:3] if part.start == 0 else batch["cu_seqlens"][2:] - 50
        halves.append(model(**own, cu_seqlens=cuts, draws=Draws(1, 2, 3, start=part.start, tokens=100)).nll)
    assert torch.allclose(torch.cat(halves), whole, rtol=0, atol=1e-12)
    elsewhere = model(**own, cu_seqlens=cuts, draws=Draws(1, 2, 3)).nll
    assert not torch.allclose(halves[1], elsewhere)


def test_places_of_a_model_lose_apart_and_torchs_generator_is_left_alone() -> None:
    model, batch = model_of(), packed([40])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    losses = [model(**batch, draws=Draws(1, step, micro)).loss.item() for step in (0, 1) for micro in (0, 1)]
    assert len(set(losses)) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_draws_nothing() -> None:
    model, batch = model_of(attn_drop_rate=0.3).eval(), packed([40])
    plain = build_model(tiny(num_layers=3, dtype="float64"))
    plain.load_state_dict(model.state_dict())
    before = torch.get_rng_state()
    assert model(**batch, draws=Draws(1, 2, 3)).loss.item() == model(**batch).loss.item() == plain(**batch).loss.item()
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_drops_by_layer_and_micro_batch() -> None:
    attention = model_of(attn_drop_rate=0.5).blocks["0"].attention
    q = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    documents = Documents(torch.tensor([0, 8], dtype=torch.int32))
    places = [Draws(1, 2, micro).layer(layer) for micro in (0, 1) for layer in (0, 1)]
    outputs = [attention.core(q, q, q, documents, None, place) for place in places]
    assert len({output.sum().item() for output in outputs}) == 4
    assert torch.equal(outputs[0], attention.core(q, q, q, documents, None, places[0]))
    assert torch.equal(attention.core(q, q, q, documents), attention.core(q, q, q, documents))
