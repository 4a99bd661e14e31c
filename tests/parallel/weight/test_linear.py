"""One layer whose weight is gathered: its products, its gradients, and how they are summed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.model.dtypes import product_dtype
from evo_core.parallel.collectives import all_reduce
from evo_core.parallel.weight.buffers import Buffers
from evo_core.parallel.weight.gathering import Gathering, Unit
from evo_core.parallel.weight.linear import GatheredLinear
from tests.parallel.weight.jobs import isp
from tests.ranks import run_on_ranks

ROWS, INPUTS, OUTPUTS = 6, 5, 8


def drawn(shape: tuple[int, ...], salt: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(salt)).to(dtype)


def layer(ranks: int, dtype: torch.dtype, *, bias: bool = True, weight: Tensor | None = None) -> GatheredLinear:
    """The part here of a layer over so many ranks."""
    gathering = Gathering(isp(1, ranks).weights.cut)  # type: ignore[union-attr]
    made = GatheredLinear(INPUTS, OUTPUTS, gathering, Unit(0), "layer", bias=bias, dtype=dtype)
    whole = drawn((OUTPUTS, INPUTS), 0, dtype) if weight is None else weight
    made.weight.data.copy_(whole.chunk(ranks)[gathering.axis.rank])
    if made.bias is not None:
        made.bias.data.copy_(drawn((OUTPUTS,), 1, dtype).chunk(ranks)[gathering.axis.rank])
    return made


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_other_tokens_on_each_rank(ranks: int, bias: bool) -> None:
    def body() -> tuple[Tensor | None, ...]:
        made, rank = layer(ranks, torch.float64, bias=bias), dist.get_rank()
        x = drawn((ROWS, INPUTS), 10 + rank).requires_grad_()
        y = made(x)
        y.backward(drawn((ROWS, OUTPUTS), 20 + rank))
        with torch.no_grad():
            assert torch.equal(made(x), y)
        return y.detach(), x.grad, made.weight.grad, None if made.bias is None else made.bias.grad

    xs = [drawn((ROWS, INPUTS), 10 + rank).requires_grad_() for rank in range(ranks)]
    weight, own = drawn((OUTPUTS, INPUTS), 0).requires_grad_(), drawn((OUTPUTS,), 1).requires_grad_()
    ys = [torch.nn.functional.linear(x, weight, own if bias else None) for x in xs]
    for rank, y in enumerate(ys):
        y.backward(drawn((ROWS, OUTPUTS), 20 + rank))
    assert weight.grad is not None
    for rank, (y, of_x, of_weight, of_bias) in enumerate(run_on_ranks(body, ranks)):
        torch.testing.assert_close(y, ys[rank].detach())
        torch.testing.assert_close(of_x, xs[rank].grad)
        torch.testing.assert_close(of_weight, weight.grad.chunk(ranks)[rank])
        assert (of_bias is None) != bias
        if own.grad is not None:
            torch.testing.assert_close(of_bias, own.grad.chunk(ranks)[rank])


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_narrow_weights_are_summed_wide(ranks: int) -> None:
    """In bfloat16 the gradient of a weight is the sum in float32 of what products gave on the ranks, and is left so.
    Factors are small whole numbers, with which that is exact."""

    def factors(rank: int) -> tuple[Tensor, Tensor]:
        return tuple(
            (drawn(shape, salt + rank) * 9).round() for shape, salt in (((ROWS, INPUTS), 10), ((ROWS, OUTPUTS), 20))
        )  # type: ignore[return-value]

    def body() -> tuple[Tensor | None, Tensor | None]:
        made = layer(ranks, torch.bfloat16)
        x, grad = factors(dist.get_rank())
        made(x.bfloat16()).backward(grad.bfloat16())
        assert made.bias is not None
        return made.weight.grad, made.bias.grad

    wide = product_dtype(torch.bfloat16, "cpu")
    products = [((grad.t() @ x).to(wide), grad.sum(0).to(wide)) for x, grad in map(factors, range(ranks))]
    exact = [torch.stack(each).double().sum(0).float() for each in zip(*products, strict=True)]
    assert not torch.equal(exact[0], exact[0].bfloat16().float()), "what is rounded is seen"
    for rank, found in enumerate(run_on_ranks(body, ranks)):
        for part, whole in zip(found, exact, strict=True):
            assert part is not None
            assert torch.equal(part, whole.chunk(ranks)[rank])


def test_what_is_not_trained_sends_nothing() -> None:
    """A layer that is not trained and whose input needs no gradient is fetched once; one whose bias is trained alone
    sums that."""

    def body() -> list[tuple[int, int]]:
        found = []
        for trained, of_input in ((False, False), (False, True), (True, False)):
            made = layer(2, torch.float64)
            made.weight.requires_grad_(False)
            assert made.bias is not None
            made.bias.requires_grad_(trained)
            with made.gathering.recording() as record:
                y = made(drawn((ROWS, INPUTS), 2).requires_grad_(of_input))
                if y.requires_grad:
                    y.sum().backward()
            assert made.weight.grad is None and (made.bias.grad is not None) == trained
            found.append((record.count("gather"), record.count("sum")))
        total = torch.ones(())
        all_reduce(total, made.gathering.axis.group).wait()  # no message is left that another would meet
        assert total == 2
        return found

    assert run_on_ranks(body, 2) == [[(1, 0), (2, 0), (1, 1)]] * 2


@pytest.fixture(params=[False, True])
def buffers(request: pytest.FixtureRequest) -> Iterator[Buffers]:
    yield Buffers(pool=request.param)


def test_buffers(buffers: Buffers) -> None:
    """A pool hands out again what it was given, to whoever asks for as many elements of that type."""
    like = torch.empty(0)
    first, second = buffers.take((4, 3), like), buffers.take((4, 3), like)
    assert first.data_ptr() != second.data_ptr() and first.is_contiguous()
    assert (buffers.made, buffers.nbytes, buffers.peak) == (2, 96, 96)
    buffers.give_back(first)
    assert buffers.nbytes == (96 if buffers.pool else 48)
    third, other = buffers.take((2, 6), like), buffers.take((4, 3), like.double())
    assert (third.data_ptr() == first.data_ptr()) == buffers.pool or not buffers.pool
    assert third.shape == (2, 6) and other.dtype == torch.float64
    assert buffers.made == (3 if buffers.pool else 4)
    assert buffers.peak == buffers.nbytes == 96 + 96


def test_a_pool_makes_what_it_is_told_to_and_no_more() -> None:
    buffers, like = Buffers(pool=True), torch.empty(0)
    taken = buffers.take((5,), like)
    buffers.reserve([(5, like), (5, like), (7, like)])
    buffers.reserve([(5, like), (7, like.double())])
    assert (buffers.made, buffers.nbytes) == (4, 5 * 4 + 5 * 4 + 7 * 4 + 7 * 8)
    assert buffers.take((5,), like).data_ptr() != taken.data_ptr()
    assert buffers.made == 4


def test_what_is_made_without_gradients_can_be_used_with_them() -> None:
    buffers = Buffers(pool=True)
    with torch.inference_mode():
        buffers.give_back(buffers.take((3,), torch.empty(0)))
    assert not buffers.take((3,), torch.empty(0)).is_inference()
