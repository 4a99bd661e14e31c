"""First weights depend on seed and name alone, and have the stated deviations."""

from __future__ import annotations

import math

import pytest
import torch

from evo_core.model import build_model, init_weights
from tests.model.configs import tiny

WIDE = {"hidden_size": 256, "vocab_size": 1000, "num_layers": 3}


def initialised(seed: int = 7, dtype: torch.dtype | None = None, **settings: object) -> dict[str, torch.Tensor]:
    cfg = tiny(**settings)
    model = build_model(cfg, dtype=dtype)
    init_weights(model, cfg, seed)
    return model.state_dict()


def test_internlms_deviations() -> None:
    state = initialised(model_type="INTERNLM", **WIDE)
    depth = [math.sqrt(2 * (layer + 1)) for layer in range(3)]
    expected = {"embedding.weight": 0.0052, "head.weight": 0.0052}
    for layer in range(3):
        prefix = f"blocks.{layer}."
        expected |= {prefix + name: 0.006 for name in ("mixer.Wqkv.weight", "mlp.w1.weight", "mlp.w3.weight")}
        expected |= {prefix + name: 0.006 / depth[layer] for name in ("mixer.out_proj.weight", "mlp.w2.weight")}
    for name, std in expected.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.02), name
        assert abs(state[name].mean().item()) < 0.02 * std
    rest = {name: value for name, value in state.items() if name not in expected}
    assert all((value == (0 if name.endswith("bias") else 1)).all() for name, value in rest.items())


def test_the_stated_deviations_win() -> None:
    stds = {
        "embedding_init_std": 0.1,
        "attn_wqkv_init_std": 0.2,
        "attn_other_init_std": 0.3,
        "ffn_uplayer_init_std": 0.4,
        "ffn_other_init_std": 0.5,
        "out_head_init_std": 0.6,
    }
    state = initialised(**WIDE, **stds, use_scaled_init=False, init_type="uniform")
    for name, std in {
        "tok_embeddings.weight": 0.1,
        "layers.2.attention.wqkv.weight": 0.2,
        "layers.2.attention.wo.weight": 0.3,
        "layers.2.feed_forward.w1.weight": 0.4,
        "layers.2.feed_forward.w3.weight": 0.4,
        "layers.2.feed_forward.w2.weight": 0.5,
        "output.weight": 0.6,
    }.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.02), name
        assert state[name].abs().max().item() <= math.sqrt(3) * std * 1.0001


@pytest.mark.parametrize("settings", [{"norm_type": "layernorm"}, {"model_type": "LLAMA2"}, {"use_swiglu": False}])
def test_every_parameter_gets_its_value(settings: dict[str, object]) -> None:
    cfg = tiny(**settings)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    init_weights(model, cfg, 0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_weights_depend_on_seed_and_name_alone() -> None:
    first, again, other = initialised(), initialised(), initialised(seed=8)
    deeper = initialised(num_layers=4, vocab_size=97, checkpoint=True)
    torch.manual_seed(123)
    torch.randn(5)
    later = initialised()
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, later[name])
        if "norm" not in name and not name.endswith("bias"):
            assert not torch.equal(value, other[name]), name
        if name.startswith("layers"):
            assert torch.equal(value, deeper[name]), name
    matrices = [value for name, value in first.items() if value.shape == first["layers.0.attention.wo.weight"].shape]
    assert not torch.equal(matrices[0] * math.sqrt(2), matrices[1])


def test_every_dtype_starts_from_the_same_numbers() -> None:
    single, double, half = (initialised(dtype=d) for d in (torch.float32, torch.float64, torch.bfloat16))
    for name, value in single.items():
        assert torch.equal(value.double(), double[name])
        assert torch.equal(value.bfloat16(), half[name])
