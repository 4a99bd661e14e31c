"""Weights as a step reads them give the products that layers give, and are those of the model as it is now."""

from __future__ import annotations

import pytest
import torch

from evo_core.generate import generate, products
from evo_core.generate.products import Blocks, Panels, Plain, Product, Sum, has_blocks
from evo_core.model.ops.linear import Linear
from tests.generate.models import decoder, greedy_without_cache


def layer(inside: int, outside: int, dtype: torch.dtype = torch.float32, *, bias: bool = False) -> Linear:
    made = Linear(inside, outside, bias=bias, dtype=dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("copied", [0, 1 << 23], ids=["too large to copy", "copied"])
@pytest.mark.parametrize("rows", [1, 2, 9])
@torch.inference_mode()
def test_products_are_those_of_the_layers(
    rows: int, copied: int, bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "COPIED_ELEMENTS", copied)
    layers = [layer(24, width, dtype, bias=bias) for width in (33, 8)]
    x, to = torch.randn(rows, 24, dtype=dtype), torch.randn(rows, 41, dtype=dtype)
    product = Product.of(*layers)
    close = {"rtol": 2e-2, "atol": 1e-1} if dtype == torch.bfloat16 else {"atol": 1e-4}
    expected = torch.cat([each(x) for each in layers], -1)
    before = to.clone()
    assert torch.allclose(product(x), expected, **close)
    assert torch.allclose(product.for_rows(rows).plus(x, to), expected + to, **close)
    assert torch.equal(to, before)


def test_one_row_reads_panels_and_several_read_blocks() -> None:
    product = Product.of(layer(16, 16))
    assert isinstance(product.for_rows(1), Panels)
    assert isinstance(product.for_rows(2), Blocks if has_blocks(torch.empty(1)) else Plain)
    assert isinstance(Product.of(layer(16, 16, torch.float64)).for_rows(2), Plain)  # oneDNN has no float64


@torch.inference_mode()
def test_a_sum_leaves_the_stream_as_it_is() -> None:
    model, linear = decoder("float32"), layer(16, 8)
    for rows in (1, 3):
        h, x = torch.randn(rows, 16), torch.randn(rows, 8)
        before = x.clone()
        assert torch.allclose(Sum(linear, model)(h, x), x + linear(h), atol=1e-5)
        assert torch.equal(x, before)


@pytest.mark.parametrize("count", [1, 3])
def test_weights_that_changed_are_read_anew(count: int) -> None:
    model, prompts = decoder("float32"), [[5, 6, 7], [8], [9, 3]][:count]
    answers = []
    for _ in range(2):
        results = generate(model, None, prompts, max_new_tokens=8, do_sample=False, batch_size=count)
        answers.append([result.ids for result in results])
        assert answers[-1] == [greedy_without_cache(model, prompt, 8) for prompt in prompts]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.flip(0))
    assert answers[0] != answers[1]
