"""Rotary embedding, norms and gradient scale."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from evo_core.config.schema.model import RopeScalingConfig
from evo_core.model.ops.embedding import scale_gradient
from evo_core.model.ops.norm import Norm
from evo_core.model.ops.rope import inverse_frequencies, rotary, rotate
from tests.model.configs import relative_error


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_is_the_complex_product_of_its_pairs(interleaved: bool) -> None:
    positions, d = torch.tensor([0, 3, 1, 1000]), 8
    x = torch.randn(4, 2, 3, d, dtype=torch.float64)
    out = rotate(x, rotary(positions, d, 10000.0, interleaved=interleaved, dtype=torch.float64))

    def pairs(y: torch.Tensor) -> torch.Tensor:
        y = y.unflatten(-1, (-1, 2)) if interleaved else y.unflatten(-1, (2, -1)).transpose(-1, -2)
        return torch.view_as_complex(y.contiguous())

    frequency = 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turn = torch.exp(1j * positions[:, None] * frequency)[:, None, None]
    assert torch.allclose(pairs(out), pairs(x) * turn, atol=1e-14)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_gradient(interleaved: bool) -> None:
    rotation = rotary(torch.arange(3), 4, 100.0, interleaved=interleaved, dtype=torch.float64)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda y: rotate(y, rotation), (x,))


def test_rotary_far_out_keeps_its_digits_in_low_precision() -> None:
    far = torch.tensor([1_000_000])
    low = rotary(far, 64, 10000.0, interleaved=False, dtype=torch.bfloat16)
    exact = rotary(far, 64, 10000.0, interleaved=False, dtype=torch.float64)
    assert low.cos.dtype == torch.float32
    assert (low.cos - exact.cos).abs().max() < 1e-7


def test_layouts_of_rotary_agree_after_reordering() -> None:
    x = torch.randn(5, 2, 6)
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    positions = torch.arange(5)
    pairs = rotate(x, rotary(positions, 6, 10000.0, interleaved=True, dtype=x.dtype))
    halves = rotate(x[..., order], rotary(positions, 6, 10000.0, interleaved=False, dtype=x.dtype))
    assert torch.allclose(pairs[..., order], halves)


def test_rms_norm_equals_torch_with_its_gradients() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    norm = Norm("rmsnorm", 6, 1e-5, out_dtype=torch.float64, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.normal_()
    assert torch.allclose(norm(x), torch.nn.functional.rms_norm(x, (6,), norm.weight, 1e-5))
    assert gradcheck(lambda a, _: norm(a), (x, norm.weight))


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_norms_compute_in_float32_and_round_once(kind: str, weights: torch.dtype) -> None:
    norm = Norm(kind, 64, 1e-5, out_dtype=torch.bfloat16, dtype=weights)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.1 * torch.randn(64))
        if norm.bias is not None:
            norm.bias.copy_(torch.randn(64))
    x = (3 * torch.randn(100, 64)).bfloat16()
    exact = Norm(kind, 64, 1e-5, out_dtype=torch.float64, dtype=torch.float64)
    exact.load_state_dict(norm.state_dict())
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, exact(x.double())) < 2**-8
    assert (out == exact(x.double()).to(torch.bfloat16)).float().mean() > 0.99


def test_scaled_gradient_leaves_the_value_exactly() -> None:
    x = torch.randn(1000, requires_grad=True)
    y = scale_gradient(x, 0.1)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 0.1))


def test_each_token_may_have_a_base_of_its_own() -> None:
    positions, bases = torch.tensor([3, 5, 5]), [10000.0, 10000.0, 2e6]
    together = rotary(positions, 8, torch.tensor(bases, dtype=torch.float64), interleaved=False, dtype=torch.float64)
    for t, base in enumerate(bases):
        alone = rotary(positions[t : t + 1], 8, base, interleaved=False, dtype=torch.float64)
        assert torch.allclose(together.cos[t], alone.cos[0], atol=1e-14)
        assert torch.allclose(together.sin[t], alone.sin[0], atol=1e-14)


def test_llama3_scaling_equals_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    numbers = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, **numbers}
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(head_dim=128, rope_parameters=rope), torch.device("cpu"))
    ours = inverse_frequencies(128, 500000.0, RopeScalingConfig(**numbers))
    assert ours.dtype == torch.float64
    assert ((ours - theirs).abs() / ours).max() < 1e-6
    plain = inverse_frequencies(128, 500000.0)
    assert (ours == plain).sum() > 20
    assert torch.allclose(ours[-20:], plain[-20:] / 8, rtol=1e-12)
    assert ((ours < plain) & (ours > plain / 8 * 1.0001)).any()
