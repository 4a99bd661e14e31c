"""Batches drawn ahead are those drawn one by one; errors come where they belong, and nothing is left behind."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.data.loader.batch import Batch
from evo_core.data.loader.prefetch import Prefetch, open_source
from evo_core.errors import DataError
from tests.data.corpora import job, numbered, write_folder


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_same_batches_in_the_same_order(tmp_path: Path, workers: int) -> None:
    folder = write_folder(tmp_path / "d", {"en": [numbered(50)], "cn": [numbered(9, first=5000)]})
    source = open_source(job(folder, micro_num=2), dp_rank=1, dp_size=2)
    before = set(threading.enumerate())
    with Prefetch(source, 5, 60, workers=workers) as feed:
        for step in range(5, 60):
            batch, expected = feed.batch(step), source.draw(step)[0]
            assert torch.equal(batch.input_ids, expected.input_ids)
            assert torch.equal(batch.labels, expected.labels)
        assert len(set(threading.enumerate()) - before) <= workers
        assert feed.cursor is None
    assert not set(threading.enumerate()) - before


class Counting:
    """A source that counts, and fails at one step."""

    types, digest, trained = ("en",), "", None

    def __init__(self, fails_at: int, *, sequential: bool) -> None:
        self.drawn: list[int] = []
        self.fails_at, self.sequential, self.closed = fails_at, sequential, False

    def draw(self, step: int) -> tuple[Batch, Any]:
        self.drawn.append(step)
        if step == self.fails_at:
            raise DataError("damaged", file="x.bin", line=3)
        empty = torch.full((1, 1), step)
        return Batch(empty, empty, empty, empty, []), step + 1

    def restore(self, cursor: Any) -> None: ...

    def describe(self) -> str:
        return ""

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("sequential", [False, True])
def test_an_error_comes_at_its_step_as_it_is(workers: int, sequential: bool) -> None:
    source = Counting(4, sequential=sequential)
    before = set(threading.enumerate())
    with pytest.raises(DataError, match=r"^x\.bin:3: damaged$"), Prefetch(source, 0, 9, workers=workers) as feed:
        for step in range(4):
            assert int(feed.batch(step).input_ids) == step
            assert feed.cursor == step + 1
        feed.batch(4)
    assert not set(threading.enumerate()) - before
    assert source.closed
    if sequential:
        assert source.drawn == sorted(source.drawn)


def test_it_reads_a_little_ahead_and_not_past_the_end() -> None:
    source = Counting(-1, sequential=True)
    with Prefetch(source, 0, 100, workers=1) as feed:
        for step in range(10):
            feed.batch(step)
    assert 10 <= len(source.drawn) <= 12
    source = Counting(-1, sequential=False)
    with Prefetch(source, 3, 7, workers=4) as feed:
        for step in range(3, 7):
            feed.batch(step)
    assert sorted(source.drawn) == [3, 4, 5, 6]


def test_steps_are_taken_one_after_the_other() -> None:
    with (
        Prefetch(Counting(-1, sequential=False), 3, 9, workers=1) as feed,
        pytest.raises(ValueError, match="step 5 was asked for where 3 is the next"),
    ):
        feed.batch(5)
