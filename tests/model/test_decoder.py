"""The decoder against the formulas and against Hugging Face's Llama, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch

from evo_core.model import build_model
from evo_core.model.ops.documents import Documents
from tests.model import reference
from tests.model.configs import packed, randomise, relative_error, tiny

LENGTHS = [5, 1, 9, 2]

VARIANTS = {
    "INTERNLM": {"model_type": "INTERNLM"},
    "INTERNLM without biases": {"model_type": "INTERNLM", "no_bias": True},
    "INTERNLM2": {"num_kv_attention_heads": 2},
    "INTERNLM2, one kv head": {"num_kv_attention_heads": 1, "no_bias": True},
    "INTERNLM2, norm_head": {"norm_head": True, "no_bias": True},
    "INTERNLM2, neighbouring pairs": {"qk_interleaved": True, "num_kv_attention_heads": 2},
    "INTERNLM2, post norm": {"apply_post_layer_norm": True},
    "INTERNLM2, layer norm": {"norm_type": "layernorm", "layer_norm_epsilon": 1e-3},
    "INTERNLM2, gelu": {"use_swiglu": False},
    "INTERNLM2, other base": {"rope_base": 1e6, "mlp_ratio": 8 / 3},
    "LLAMA2": {"model_type": "LLAMA2", "num_kv_attention_heads": 2, "no_bias": True},
    "LLAMA2, halves": {"model_type": "LLAMA2", "qk_interleaved": False},
    "INTERNLM, post norm": {"model_type": "INTERNLM", "apply_post_layer_norm": True},
    "LLAMA2, post norm": {"model_type": "LLAMA2", "apply_post_layer_norm": True, "norm_type": "layernorm"},
    "LLAMA3": {
        "model_type": "LLAMA3",
        "num_kv_attention_heads": 2,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16},
    },
    "QWEN3": {"model_type": "QWEN3", "num_kv_attention_heads": 2, "head_dim": 12},
    "QWEN3, tied": {"model_type": "QWEN3", "tie_word_embeddings": True, "hidden_size": 36, "head_dim": 8},
    "QWEN3, layer norm": {"model_type": "QWEN3", "norm_type": "layernorm"},
    "INTERNLM, tied": {"model_type": "INTERNLM", "tie_word_embeddings": True},
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_equal_the_formulas_in_float64(variant: str, smoothing: float) -> None:
    cfg = tiny(dtype="float64", **VARIANTS[variant])
    model = build_model(cfg)
    randomise(model)
    batch = packed(LENGTHS)
    output = model(**batch, label_smoothing=smoothing)
    output.loss.backward()
    assert {t.dtype for t in (output.loss, output.nll, *(p.grad for p in model.parameters()))} == {torch.float64}

    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected = reference.loss(weights, cfg, batch, smoothing)
    expected.backward()
    assert abs(output.loss.item() - expected.item()) < 1e-12
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert relative_error(parameter.grad, weights[name].grad) < 1e-10, name

    log_p = torch.log_softmax(reference.logits(weights, cfg, batch), dim=-1)
    valid = batch["labels"] != -100
    nll = -log_p.gather(1, batch["labels"].clamp(min=0)[:, None])[:, 0]
    assert torch.allclose(output.nll, torch.where(valid, nll, 0.0), atol=1e-12)
    assert torch.equal(output.hit, (log_p.argmax(-1) == batch["labels"]) & valid)


def test_names_of_parameters_are_the_original_systems() -> None:
    def names(**settings: object) -> set[str]:
        model = build_model(tiny(num_layers=1, **settings), device="meta")
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
        return set(model.state_dict())

    assert names(model_type="INTERNLM") == {
        "embedding.weight",
        "blocks.0.mixer.Wqkv.weight",
        "blocks.0.mixer.Wqkv.bias",
        "blocks.0.mixer.out_proj.weight",
        "blocks.0.mixer.out_proj.bias",
        "blocks.0.norm1.weight",
        "blocks.0.norm2.weight",
        "blocks.0.mlp.w1.weight",
        "blocks.0.mlp.w2.weight",
        "blocks.0.mlp.w3.weight",
        "norm.weight",
        "head.weight",
    }
    internlm2 = {
        "tok_embeddings.weight",
        "layers.0.attention.wqkv.weight",
        "layers.0.attention.wo.weight",
        "layers.0.attention_norm.weight",
        "layers.0.ffn_norm.weight",
        "layers.0.feed_forward.w1.weight",
        "layers.0.feed_forward.w2.weight",
        "layers.0.feed_forward.w3.weight",
        "norm.weight",
        "output.weight",
    }
    assert names(no_bias=True) == internlm2
    split = {f"layers.0.attention.w{x}.weight" for x in "qkv"}
    llama = internlm2 - {"layers.0.attention.wqkv.weight"} | split
    assert names(no_bias=True, model_type="LLAMA2") == llama
    assert names(model_type="LLAMA3") == llama
    normed = {f"layers.0.attention.{x}_norm.weight" for x in "qk"}
    assert names(model_type="QWEN3") == llama | normed
    assert names(model_type="QWEN3", tie_word_embeddings=True) == (llama | normed) - {"output.weight"}


@pytest.mark.parametrize("settings", [{"residual_in_fp32": True}, {"use_fp32_norm": True}, {}])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float64(dtype: str, settings: dict[str, bool]) -> None:
    cfg = tiny(dtype=dtype, **settings)
    model, exact = build_model(cfg), build_model(cfg, dtype=torch.float64)
    randomise(model)
    exact.load_state_dict(model.state_dict())
    batch = packed(LENGTHS)
    output, expected = model(**batch), exact(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert expected.loss.dtype == torch.float64
    assert abs(output.loss.item() - expected.loss.item()) < 0.03 * expected.loss.item()
    norms = {p.dtype for name, p in model.named_parameters() if "norm" in name}
    assert norms == {torch.float32 if settings.get("use_fp32_norm") else getattr(torch, dtype)}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_residual_in_fp32_keeps_what_bfloat16_would_round_away() -> None:
    batch = packed(LENGTHS)
    errors = []
    for keep in (False, True):
        cfg = tiny(dtype="bfloat16", num_layers=16, residual_in_fp32=keep)
        model, exact = build_model(cfg), build_model(cfg, dtype=torch.float64)
        randomise(model)
        with torch.no_grad():
            for block in model.blocks.values():  # small contributions to a large sum
                block.attention.out.weight.mul_(0.02)
                block.mlp.down.weight.mul_(0.02)
        exact.load_state_dict(model.state_dict())
        with torch.no_grad():
            errors.append((model(**batch).nll - exact(**batch).nll).abs().mean().item())
    assert errors[1] < 0.5 * errors[0], errors


@pytest.mark.parametrize(("fraction", "recomputed"), [(False, 0), (True, 4), (0.5, 2), (0.7, 2)])
def test_checkpointing_recomputes_the_first_blocks_and_changes_nothing(fraction: float, recomputed: int) -> None:
    batch = packed(LENGTHS)
    plain, saving = (build_model(tiny(num_layers=4, checkpoint=share)) for share in (False, fraction))
    randomise(plain)
    saving.load_state_dict(plain.state_dict())
    runs = [0] * 4
    for layer, block in enumerate(saving.blocks.values()):
        block.register_forward_pre_hook(lambda *_, layer=layer: runs.__setitem__(layer, runs[layer] + 1))
    for model in (plain, saving):
        model(**batch).loss.backward()
    assert runs == [2] * recomputed + [1] * (4 - recomputed)
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    with torch.no_grad():
        saving(**batch)
    assert runs == [3] * recomputed + [2] * (4 - recomputed)


def test_embed_grad_scale_scales_the_gradient_of_embedding_and_head_alone() -> None:
    batch = packed(LENGTHS)
    plain, scaled = (build_model(tiny(dtype="float64", embed_grad_scale=s)) for s in (1, 0.1))
    randomise(plain)
    scaled.load_state_dict(plain.state_dict())
    losses = [model(**batch).loss for model in (plain, scaled)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == losses[1].item()
    for (name, a), b in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        scale = 0.1 if name in ("tok_embeddings.weight", "output.weight") else 1.0
        assert torch.allclose(a.grad * scale, b.grad, rtol=1e-12), name


def test_a_tied_head_moves_with_its_embedding() -> None:
    model = build_model(tiny(model_type="QWEN3", tie_word_embeddings=True), device="meta")
    model = model.to_empty(device="cpu")
    randomise(model)
    assert model.head.effective_weight().data_ptr() == model.embedding.weight.data_ptr()
    assert not list(model.head.parameters())
    copied = copy.deepcopy(model)
    assert copied.head.effective_weight().data_ptr() == copied.embedding.weight.data_ptr()


def test_dropout_is_for_training_and_the_same_when_recomputed() -> None:
    batch = packed(LENGTHS)
    rates = {"drop_rate": 0.2, "attn_drop_rate": 0.2, "num_layers": 3, "dtype": "float64"}
    plain, saving = build_model(tiny(**rates)), build_model(tiny(**rates, checkpoint=True))
    randomise(plain)
    saving.load_state_dict(plain.state_dict())
    losses = []
    for model in (plain, saving):
        torch.manual_seed(5)
        losses.append(model(**batch).loss)
        losses[-1].backward()
    assert losses[0].item() == losses[1].item()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    torch.manual_seed(6)
    assert plain(**batch).loss.item() != losses[0].item()
    whole = build_model(tiny(num_layers=3, dtype="float64"))
    whole.load_state_dict(plain.state_dict())
    plain.eval()
    assert plain(**batch).loss.item() == whole(**batch).loss.item()


@torch.no_grad()
def test_dropout_acts_on_the_embedding_and_on_what_each_part_adds() -> None:
    model = build_model(tiny(num_layers=1, dtype="float64", drop_rate=0.25))
    randomise(model)
    model.norm = torch.nn.Identity()
    batch = packed([40])

    def hidden() -> torch.Tensor:
        return model.hidden(batch["input_ids"], batch["positions"], Documents(batch["cu_seqlens"]))

    def dropped(value: torch.Tensor, whole: torch.Tensor) -> float:
        kept = value != 0
        assert torch.allclose(value[kept], whole[kept] / 0.75)
        return 1 - kept.double().mean().item()

    block, embedded = model.blocks["0"], model.embedding(batch["input_ids"])
    block.attention.out.weight.zero_()
    block.attention.out.bias.zero_()
    block.mlp.down.weight.zero_()
    assert dropped(hidden(), embedded) == pytest.approx(0.25, abs=0.05)
    model.embedding.weight.zero_()
    block.attention.out.bias.fill_(2.0)
    assert dropped(hidden(), torch.full_like(embedded, 2.0)) == pytest.approx(0.25, abs=0.05)
    block.attention.out.bias.zero_()
    block.mlp = Three()
    assert dropped(hidden(), torch.full_like(embedded, 3.0)) == pytest.approx(0.25, abs=0.05)


class Three(torch.nn.Module):
    """An MLP that says 3 to everything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 3.0)


def test_a_document_does_not_see_its_neighbours() -> None:
    model = build_model(tiny(dtype="float64"))
    randomise(model)
    batch = packed(LENGTHS)
    together = model(batch["input_ids"], batch["positions"], batch["cu_seqlens"]).logits
    start = 0
    for length in LENGTHS:
        alone = model(
            batch["input_ids"][start : start + length],
            torch.arange(length),
            torch.tensor([0, length], dtype=torch.int32),
        ).logits
        assert torch.allclose(alone, together[start : start + length], atol=1e-12)
        start += length


def test_children_are_read_and_replaced_by_role() -> None:
    model = build_model(tiny(no_bias=True), device="meta")
    attention = model.blocks["0"].attention
    assert attention.qkv is model.get_submodule("layers.0.attention.wqkv")
    other = torch.nn.Linear(32, 96, bias=False)
    attention.qkv = other
    assert model.get_submodule("layers.0.attention.wqkv") is other
    with pytest.raises(AttributeError, match="no_such_role"):
        attention.no_such_role  # noqa: B018
