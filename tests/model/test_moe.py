"""Mixture of experts: routers, dispatch and the whole model against a dense reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from evo_core.model import Decoder, build_model, init_weights
from evo_core.model.draws import Draws
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.moe import Gate
from evo_core.model.ops.routing import capacity, dropless, gshard
from tests.model import reference
from tests.model.configs import packed, randomise, relative_error, tiny

LENGTHS = [5, 1, 9, 2]
EXPERTS = {"model_type": "INTERNLM_MoE", "num_experts": 4, "dtype": "float64"}

VARIANTS: dict[str, dict[str, Any]] = {
    "top 1": {"moe": {"use_rts": False}},
    "top 1, little room": {"moe": {"use_rts": False, "capacity_factor": 0.5, "min_capacity": 1}},
    "top 1, all kept": {"moe": {"drop_tokens": False, "capacity_factor": 0.1, "min_capacity": 1}},
    "top 2": {"moe": {"top_k": 2}},
    "top 2, little room": {"moe": {"top_k": 2, "capacity_factor": 0.5, "min_capacity": 1}},
    "top 2, residual": {"moe": {"top_k": 2}, "moe_use_residual": True},
    "top 1, residual, gelu": {"moe": {"use_rts": False}, "moe_use_residual": True, "use_swiglu": False},
    "MegaBlock": {"moe": {"top_k": 3}, "moe_type": "MegaBlock"},
    "MegaBlock-D": {"moe": {"top_k": 1, "capacity_factor": 0.1}, "moe_type": "MegaBlock-D"},
    "post norm, recomputed": {"moe": {"use_rts": False}, "apply_post_layer_norm": True, "checkpoint": 0.5},
}


def model_of(**settings: Any) -> Decoder:
    model = build_model(tiny(**{**EXPERTS, **settings}))
    randomise(model)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_every_gradient_equal_the_dense_reference(variant: str) -> None:
    model, batch = model_of(**VARIANTS[variant]), packed(LENGTHS)
    output = model(**batch)
    output.objective(0.7).backward()
    assert output.moe_loss.dtype == torch.float64

    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits, balances = reference.logits_and_balances(weights, model.cfg, batch)
    loss, moe_loss = torch.nn.functional.cross_entropy(logits, batch["labels"]), torch.stack(balances).sum()
    (loss + 0.7 * moe_loss).backward()
    assert abs(output.loss.item() - loss.item()) < 1e-12
    assert abs(output.moe_loss.item() - moe_loss.item()) < 1e-12
    assert len(balances) == 2
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        if parameter.grad is None:  # no token came to this expert
            assert ".wrapped_experts." in name
            assert expected is None or not expected.any()
        else:
            assert relative_error(parameter.grad, expected) < 1e-10 or not expected.any(), name


def test_names_of_parameters_are_the_original_systems() -> None:
    model = build_model(tiny(**EXPERTS | {"num_experts": 2, "moe_use_residual": True, "num_layers": 1}), device="meta")
    names = {name.removeprefix("blocks.0.mlp.") for name in model.state_dict() if ".mlp." in name}
    assert names == {
        "moe_layer.gate.wg.weight",
        *(f"moe_layer.experts.wrapped_experts.{e}.w{i}.weight" for e in (0, 1) for i in (1, 2, 3)),
        *(f"residual_mlp.w{i}.weight" for i in (1, 2, 3)),
        "coefficient.weight",
        "coefficient.bias",
    }
    assert set(build_model(tiny(**EXPERTS | {"num_experts": 1}), device="meta").state_dict()) == set(
        build_model(tiny(model_type="INTERNLM"), device="meta").state_dict()
    )


def test_room_is_counted_over_all_tokens() -> None:
    assert capacity(100, 8, top_k=1, factor=1.0, least=4) == 13
    assert capacity(100, 8, top_k=2, factor=1.25, least=4) == 32
    assert capacity(10, 8, top_k=1, factor=1.0, least=4) == 4


def test_second_choices_are_served_last_and_the_rest_takes_all() -> None:
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0], [1.0, 3.0]])
    routing = gshard(logits, 2, 2)
    assert routing.experts.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert routing.kept.tolist() == [[True, False], [True, True], [True, False]]
    assert torch.allclose(routing.weights[0], torch.tensor([1.0, 0.0]))
    high, low = math.exp(3), math.exp(1)
    assert torch.allclose(routing.weights[1], torch.tensor([high, low]) / (high + low))


def test_the_balance_loss_is_one_where_experts_are_used_evenly() -> None:
    even = torch.eye(4).repeat(3, 1) * 20
    assert gshard(even, 1, None).balance.item() == pytest.approx(1)
    assert dropless(even, 1).balance.item() == pytest.approx(1)
    assert gshard(torch.tensor([[20.0, 0, 0, 0]]).repeat(12, 1), 1, None).balance.item() == pytest.approx(4)


def test_tokens_without_room_are_chosen_at_random_or_from_the_end() -> None:
    logits = torch.tensor([[5.0, 0.0]]).repeat(200, 1)
    assert gshard(logits, 1, 50).kept[:, 0].tolist() == [True] * 50 + [False] * 150
    draws = Draws(1, 0, 0)
    chosen = gshard(logits, 1, 50, order=draws.layer(0).order(logits, "a")).kept[:, 0]
    assert chosen.sum() == 50
    assert 5 < chosen[100:].sum() < 45
    assert not torch.equal(chosen, gshard(logits, 1, 50, order=draws.layer(1).order(logits, "a")).kept[:, 0])


def test_noise_draws_the_last_choice_in_proportion_to_its_probability() -> None:
    draws = Draws(0, 0, 0).layer(0)
    logits = torch.tensor([[4.0, math.log(3.0), 0.0]]).repeat(20_000, 1)
    second = gshard(logits, 2, None, noise=draws.gumbel(logits, "a")).experts
    assert (second[:, 0] == 0).all()
    assert (second[:, 1] == 1).double().mean().item() == pytest.approx(0.75, abs=0.02)
    first = gshard(logits[:, 1:], 1, None, noise=draws.gumbel(logits[:, 1:], "a")).experts
    assert (first[:, 0] == 0).double().mean().item() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("policy", ["Jitter", "RSample"])
def test_noise_is_for_training(policy: str) -> None:
    model, batch = model_of(moe={"noisy_gate_policy": policy, "drop_tokens": False}), packed([64, 64])
    plain = model_of(moe={"drop_tokens": False})
    first, second = model(**batch), model(**batch)
    assert first.moe_loss.item() != second.moe_loss.item() or first.loss.item() != second.loss.item()
    assert model.eval()(**batch).loss.item() == plain.eval()(**batch).loss.item()


def test_chance_is_for_training_and_the_same_when_recomputed() -> None:
    moe = {"capacity_factor": 0.5, "min_capacity": 1, "noisy_gate_policy": "RSample"}
    plain, saving, batch = model_of(moe=moe), model_of(moe=moe, checkpoint=True), packed([40, 24])
    assert plain.draws
    losses = []
    for model in (plain, saving):
        torch.manual_seed(3)
        output = model(**batch)
        output.objective(1.0).backward()
        losses.append(output.loss.item())
    assert losses[0] == losses[1]
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert plain(**batch).loss.item() != losses[0]
    assert plain.eval()(**batch).loss.item() == plain.eval()(**batch).loss.item()


def test_room_in_evaluation_has_a_factor_of_its_own() -> None:
    moe = {"use_rts": False, "min_capacity": 1, "capacity_factor": 0.25, "eval_capacity_factor": 4.0}
    model, batch = model_of(moe=moe), packed([40, 24])
    whole = model_of(moe={"drop_tokens": False})
    assert model(**batch).loss.item() != whole(**batch).loss.item()
    assert model.eval()(**batch).loss.item() == whole.eval()(**batch).loss.item()


def test_generation_drops_nothing() -> None:
    class AllAtOnce:
        """A cache that remembers nothing: the whole text comes in one piece."""

        def attend(self, layer: int, q: Any, k: Any, v: Any, documents: Documents) -> torch.Tensor:
            from evo_core.model.ops.attention import packed_attention

            return packed_attention(q, k, v, documents)

    model = model_of(moe={"min_capacity": 1, "eval_capacity_factor": 0.1}).eval()
    whole = model_of(moe={"drop_tokens": False}).eval()
    batch = packed([30, 10])
    places = (batch["input_ids"], batch["positions"], Documents(batch["cu_seqlens"]))
    with torch.no_grad():
        assert torch.equal(model.hidden(*places, AllAtOnce()), whole.hidden(*places))
        assert not torch.equal(model.hidden(*places), whole.hidden(*places))


def test_the_router_is_float32_in_a_half_precision_model() -> None:
    cfg = tiny(**EXPERTS | {"dtype": "bfloat16", "moe": {"top_k": 2}, "moe_use_residual": True})
    model = build_model(cfg)
    init_weights(model, cfg, 0)
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    assert {gate.wg.weight.dtype for gate in gates} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if ".gate.wg" not in name} == {torch.bfloat16}
    output = model(**packed(LENGTHS))
    output.objective(1.0).backward()
    assert output.moe_loss.dtype == torch.float32
    assert all(gate.wg.weight.grad.abs().max() > 0 for gate in gates)


def test_every_parameter_gets_its_first_value() -> None:
    cfg = tiny(**EXPERTS | {"hidden_size": 256, "moe_use_residual": True})
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    init_weights(model, cfg, 0)
    state = model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    second = "blocks.1.mlp.moe_layer.experts.wrapped_experts."
    assert state[f"{second}3.w1.weight"].std().item() == pytest.approx(0.006, rel=0.03)
    assert state[f"{second}3.w2.weight"].std().item() == pytest.approx(0.006 / 2, rel=0.03)
    assert state["blocks.1.mlp.moe_layer.gate.wg.weight"].std().item() == pytest.approx(0.006, rel=0.1)
    assert not torch.equal(state[f"{second}0.w1.weight"], state[f"{second}1.w1.weight"])
