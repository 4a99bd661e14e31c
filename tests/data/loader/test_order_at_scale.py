"""The order of as many documents as a trillion tokens have: how long a start takes, how much memory, and a batch."""

from __future__ import annotations

import pytest

from benchmarks import order


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the index of a billion is made, which no start waits for
@pytest.mark.parametrize("documents", [10**8, 10**9], ids=["1e8", "1e9"])
def test_a_loader_of_many_documents_starts_at_once_and_stays_small(documents: int) -> None:
    try:
        many = order.run(documents)
    except order.NoRoom as error:
        pytest.skip(str(error))
    few = order.run(10**6)
    assert (few.order, many.order) == ("whole", "blocks")
    assert many.start_s + many.first_s < 60
    assert 8 * many.own_mb < 1000, "eight ranks of a node, each with its own"
    # Two processes on a machine that others use: the same within what they disturb, and nothing that grows.
    assert many.order_us < 2 * few.order_us
    assert many.batch_us < 2 * few.batch_us


@pytest.mark.slow
def test_a_batch_of_many_documents_takes_no_longer_than_one_of_few() -> None:
    try:
        found = order.ratios()
    except order.NoRoom as error:
        pytest.skip(str(error))
    assert found["order"] < 1.15
    assert found["batch"] < 1.1
