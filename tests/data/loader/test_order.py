"""The global order: every pack once, mixed in proportion, reproducible at any position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.data.loader.order import BatchSize, PackOrder, permutation


def test_permutations_never_change() -> None:
    assert permutation(8, 1024, "documents", "en", 0).tolist() == [5, 6, 1, 0, 7, 2, 3, 4]
    assert permutation(0, 1).tolist() == []


def test_every_key_has_its_own_permutation() -> None:
    keys = [(1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0)]
    assert len({tuple(permutation(50, *key)) for key in keys}) == 4


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=4).filter(lambda tokens: sum(tokens) > 0),
    st.integers(1, 64),
    st.integers(0, 3),
)
def test_every_pack_of_every_type_comes_once(tokens: list[int], packed_length: int, seed: int) -> None:
    order = PackOrder(tokens, packed_length, seed)
    epochs = 6
    positions = order.packs_before(epochs)
    seen = [order.locate(position) for position in range(positions)]
    expected = [(n, k) for n, count in enumerate(tokens) for k in range(epochs * count // packed_length)]
    assert sorted(seen) == expected
    for position in range(positions):
        epoch = order.epoch_of(position)
        assert order.packs_before(epoch) <= position < order.packs_before(epoch + 1)
        number, k = seen[position]
        assert epoch * tokens[number] // packed_length <= k < (epoch + 1) * tokens[number] // packed_length


def test_types_mix_in_proportion() -> None:
    order = PackOrder([9000, 1000], 10, 0)
    first = Counter(order.locate(position)[0] for position in range(500))
    assert 30 < first[1] < 75
    assert [order.locate(position) for position in range(20)] == [
        PackOrder([9000, 1000], 10, 0).locate(position) for position in range(20)
    ]


def test_epochs_differ() -> None:
    order = PackOrder([1000], 10, 0)
    first, second = ([order.locate(e * 100 + i)[1] - e * 100 for i in range(100)] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_no_tokens_have_no_order() -> None:
    with pytest.raises(ValueError, match="an order of nothing"):
        PackOrder([0, 0], 4, 0)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 7), st.integers(0, 4))
def test_growing_batches_add_up(start: int, increment: int, every: int, growths: int) -> None:
    size = BatchSize(start + growths * increment, start, increment, every)
    before = 0
    for step in range(60):
        assert size.before(step) == before
        assert size.at(step) == min(start + step // every * increment, size.full)
        before += size.at(step)


def test_constant_batches() -> None:
    size = BatchSize.constant(6)
    assert [size.at(0), size.at(99), size.before(0), size.before(99)] == [6, 6, 0, 594]
