"""A decoder cut into stages: the same loss and gradients, bit for bit, as in one piece."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from evo_core.generate.forward import Forward
from evo_core.model import Decoder, build_model, init_weights
from evo_core.model.cutting import allocate, keep_stages
from evo_core.model.draws import Draws
from evo_core.model.families import FAMILIES
from evo_core.model.ops.norm import Norm
from evo_core.model.stage import Stage
from tests.model.configs import packed, randomise, tiny

LENGTHS = [5, 1, 9, 2]
EXPERTS: dict[str, Any] = {"model_type": "INTERNLM_MoE", "num_experts": 4, "moe": {"capacity_factor": 0.5}}
DROPOUT = {"drop_rate": 0.2, "attn_drop_rate": 0.2}

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"model_type": name} for name in FAMILIES},
    "experts": EXPERTS,
    "two experts, noise": EXPERTS | {"moe": {"top_k": 2, "noisy_gate_policy": "RSample"}, "moe_use_residual": True},
    "tied": {"model_type": "QWEN3", "tie_word_embeddings": True, "embed_grad_scale": 0.5},
    "post norm": {"apply_post_layer_norm": True},
    "post norm, experts, dropout": EXPERTS | DROPOUT | {"apply_post_layer_norm": True},
    "dropout, recomputed": {**DROPOUT, "checkpoint": 0.6},
    "residual in float32": {"residual_in_fp32": True, "dtype": "bfloat16"},
}
CUTS = {"two": [2], "one first": [1], "three": [1, 3], "a head alone": [4]}


def stages_of(cfg: Any, cuts: list[int], like: Decoder) -> list[Decoder]:
    """The stages of a model, each made without memory for the others, with the weights of `like`."""
    ends, state, stages = [0, *cuts, cfg.num_layers], like.state_dict(), []
    for number, (first, end) in enumerate(itertools.pairwise(ends)):
        stage = build_model(cfg, device="meta")
        keep_stages(stage, [Stage(range(first, end), has_embedding=number == 0, has_head=number == len(cuts))])
        allocate(stage, "cpu")
        stage.load_state_dict({name: state[name] for name in stage.state_dict()})
        stages.append(stage)
    return stages


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_stages_one_after_another_are_the_whole_model(variant: str, cut: str) -> None:
    cfg = tiny(**{"num_layers": 4, "dtype": "float64", **VARIANTS[variant]})
    whole, batch = build_model(cfg), packed(LENGTHS)
    randomise(whole)
    expected = whole(**batch, label_smoothing=0.1, draws=Draws(1, 2, 3))
    expected.objective(0.7).backward()

    stages = stages_of(cfg, CUTS[cut], whole)
    assert [stage.head is None for stage in stages] == [True] * (len(stages) - 1) + [False]
    received: list[list[torch.Tensor]] = []
    outputs = []
    x, moe_loss = batch["input_ids"], None
    for stage in stages:  # each with a graph of its own, as where they are on different machines
        output = stage(
            x,
            batch["positions"],
            batch["cu_seqlens"],
            labels=batch["labels"],
            label_smoothing=0.1,
            draws=Draws(1, 2, 3),
            moe_loss=moe_loss,
        )
        outputs.append(output)
        if output.hidden is not None:
            assert output.loss is output.logits is None
            x = output.hidden.detach().requires_grad_()
            moe_loss = None if output.moe_loss is None else output.moe_loss.detach().requires_grad_()
            received.append([x] if moe_loss is None else [x, moe_loss])
    last = outputs.pop()
    assert torch.equal(last.loss, expected.loss)
    assert torch.equal(last.nll, expected.nll)
    assert (last.moe_loss is None) == (expected.moe_loss is None)
    if expected.moe_loss is not None:
        assert torch.equal(last.moe_loss, expected.moe_loss)

    last.objective(0.7).backward()
    for output, tensors in zip(reversed(outputs), reversed(received), strict=True):
        sent = [output.hidden] if output.moe_loss is None else [output.hidden, output.moe_loss]
        torch.autograd.backward(sent, [tensor.grad for tensor in tensors])
    gradients: dict[str, list[torch.Tensor]] = {}
    for stage in stages:
        for name, parameter in stage.named_parameters():
            if parameter.grad is not None:
                gradients.setdefault(name, []).append(parameter.grad)
    for name, parameter in whole.named_parameters():
        if parameter.grad is None:  # an expert to which no token came
            assert name not in gradients
        else:
            assert torch.equal(sum(gradients[name]), parameter.grad), name
    shared = {name for name, found in gradients.items() if len(found) > 1}
    assert shared == ({"tok_embeddings.weight"} if cfg.tie_word_embeddings else set())


@pytest.mark.parametrize("variant", VARIANTS)
def test_stages_share_out_the_names_and_first_weights_of_the_whole(variant: str) -> None:
    cfg = tiny(**{"num_layers": 4, "dtype": "float64", **VARIANTS[variant]})
    whole = build_model(cfg)
    init_weights(whole, cfg, 3)
    expected, names = whole.state_dict(), []
    for stage in stages_of(cfg, [1, 3], whole):
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.fill_(float("nan"))
        init_weights(stage, cfg, 3)
        for name, value in stage.state_dict().items():
            assert torch.equal(value, expected[name]), name
        names += list(stage.state_dict())
    twice = ["tok_embeddings.weight"] if cfg.tie_word_embeddings else []
    assert sorted(names) == sorted([*expected, *twice])


def test_of_each_stage_the_same_fraction_is_recomputed() -> None:
    cfg = tiny(num_layers=6, checkpoint=0.67)
    whole, batch, runs = build_model(cfg), packed(LENGTHS), [0] * 6
    randomise(whole)
    x: Any = batch["input_ids"]
    for stage in stages_of(cfg, [3], whole):
        for name, block in stage.blocks.items():
            block.register_forward_pre_hook(lambda *_, number=int(name): runs.__setitem__(number, runs[number] + 1))
        output = stage(x, batch["positions"], batch["cu_seqlens"], labels=batch["labels"])
        x = output.hidden
    output.loss.backward()
    assert runs == [2, 2, 1, 2, 2, 1]


def test_a_stage_that_a_model_does_not_hold_is_refused() -> None:
    model = build_model(tiny(num_layers=4), device="meta")
    keep_stages(model, [Stage(range(1, 3), has_embedding=False, has_head=False)])
    assert list(model.blocks) == ["1", "2"]
    for wanted in (
        Stage(range(2, 4), has_embedding=False, has_head=False),
        Stage(range(1, 2), has_embedding=True, has_head=False),
        Stage(range(1, 2), has_embedding=False, has_head=True),
    ):
        with pytest.raises(ValueError, match="are no parts of"):
            keep_stages(model, [wanted])
    keep_stages(model, [Stage(range(2, 3), has_embedding=False, has_head=False)])
    assert {name.split(".")[1] for name in model.state_dict()} == {"2"}


def test_what_only_a_whole_model_can_do_is_refused() -> None:
    model = build_model(tiny())
    randomise(model)
    keep_stages(model, [Stage(range(2), has_embedding=True, has_head=False)])
    with pytest.raises(ValueError, match="a stage generates no tokens alone"):
        Forward(model)
    batch = packed(LENGTHS)
    with pytest.raises(ValueError, match="without a head"):
        model(**batch).objective(1.0)


def test_memory_is_given_to_what_has_none() -> None:
    model = build_model(tiny(), device="meta")
    model.norm = Norm("rmsnorm", 32, 1e-5, out_dtype=torch.float32, dtype=torch.float32)
    model.norm.register_buffer("seen", torch.empty(3, device="meta"), persistent=False)
    brought = model.norm.weight
    model.embedding.weight.requires_grad_(False)
    allocate(model, "cpu")
    assert model.norm.weight is brought
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert "norm.seen" not in model.state_dict()
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["tok_embeddings.weight"]
