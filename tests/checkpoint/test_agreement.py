"""Ranks that mean different things by one name are found out before anything is written."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint.agreement import Described, Description, check_agreement
from evo_core.checkpoint.checksum import hashed, weighed
from evo_core.checkpoint.writers import cut, own_parts
from evo_core.errors import CheckpointError
from evo_core.placement import Placed, Placement, Span
from tests.checkpoint.layouts import LAYOUTS, Layout, held
from tests.ranks import run_on_ranks

Change = Callable[[dict[str, Placed], int], None]


def described(tensors: dict[str, Placed], rank: int) -> dict[str, Described]:
    parts = cut(tensors)
    return Description(tensors, parts, rank).complete(own_parts(parts, rank))


def complaint(layout: Layout, change: Change) -> str:
    """What all ranks say after a change to what they hold; nothing where they agree."""

    def check() -> str:
        tensors = held(layout, dist.get_rank(), filled=True)
        change(tensors, dist.get_rank())
        try:
            check_agreement(described(tensors, dist.get_rank()))
        except CheckpointError as error:
            return str(error)
        return ""

    (said,) = set(run_on_ranks(check, layout.ranks))
    return said


def test_what_a_rank_says_does_not_grow_with_pieces_times_ranks() -> None:
    """It is sent by every rank to one: of 1024 ranks 2 MB each were 2 GB there."""

    def said(ranks: int) -> int:
        placements = [Placement.whole((8, 4), range(ranks)).share(0, 8, range(0, ranks, 8)) for _ in range(500)]
        tensors = {str(n): Placed(torch.zeros(1, 4), p) for n, p in enumerate(placements)}
        return len(pickle.dumps(described(tensors, 0)))

    assert said(1024) < 1.1 * said(64)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_that_agree(layout: Layout) -> None:
    assert complaint(layout, lambda tensors, rank: None) == ""


def test_one_bit_on_one_rank() -> None:
    def flip(tensors: dict[str, Placed], rank: int) -> None:
        if rank == 2:
            tensors["moment.w1"].local.view(torch.int16)[1, 3] ^= 1

    said = complaint(Layout(1, 2, 2), flip)
    assert said.startswith(
        "no checkpoint can be saved: moment.w1 has other values on rank 0 than on rank 2 (go on from"
    )


def test_numbers_in_other_places() -> None:
    def swap(tensors: dict[str, Placed], rank: int) -> None:
        if rank == 1:
            tensors["norm"].local[:2] = tensors["norm"].local[:2].flip(0)

    assert "norm has other values on ranks 0, 2, 3 than on rank 1" in complaint(Layout(2, 2), swap)


def test_a_head_that_two_tensor_ranks_hold() -> None:
    def change(tensors: dict[str, Placed], rank: int) -> None:
        if rank == 3:
            tensors["kv"].local[1] += 1  # its own row is local row 0

    assert "kv has other values on ranks 0, 1, 2 than on rank 3" in complaint(Layout(4, 1), change)


def test_what_only_one_rank_holds_may_be_anything() -> None:
    def change(tensors: dict[str, Placed], rank: int) -> None:
        tensors["moment.w1"].local.fill_(rank)

    assert complaint(Layout(1, 4), change) == ""


def replaced(name: str, make: Callable[[int], tuple[Placement, torch.dtype]]) -> Change:
    def change(tensors: dict[str, Placed], rank: int) -> None:
        placement, dtype = make(rank)
        tensors[name] = Placed(torch.zeros(placement.local_shape, dtype=dtype), placement)

    return change


def whole(shape: tuple[int, ...], ranks: Any, dtype: torch.dtype = torch.float32) -> tuple[Placement, torch.dtype]:
    return Placement.whole(shape, ranks), dtype


def rows(*spans: tuple[int, int, list[int]]) -> tuple[Placement, torch.dtype]:
    return Placement.joined((4, 3), 0, [Span(*span) for span in spans]), torch.float32


CONFLICTS: dict[str, tuple[Callable[[int], tuple[Placement, torch.dtype]], str]] = {
    "another shape": (
        lambda rank: whole((4, 2 + rank), [0, 1]),
        "x is [4, 2] float32 on rank 0 and [4, 3] float32 on rank 1",
    ),
    "another type": (
        lambda rank: whole((4, 3), [0, 1], torch.float64 if rank else torch.float32),
        "x is [4, 3] float32 on rank 0 and [4, 3] float64 on rank 1",
    ),
    "an overlap": (
        lambda rank: rows((rank, rank + 3, [rank])),
        "x is not whole: [0:3, 0:3] and [1:4, 0:3] overlap",
    ),
    "a hole": (
        lambda rank: rows((2 * rank, 2 * rank + 1, [rank])),
        "x is not whole: 6 of 12 elements are missing",
    ),
    "nobody knows of the other": (
        lambda rank: whole((4, 3), [rank]),
        "x[0:4, 0:3] is held by ranks 0, 1, and said to be by rank 0",
    ),
    "one who does not hold it": (
        lambda rank: rows((2 * rank, 2 * rank + 2, [0, 1])),
        "x[0:2, 0:3] is held by rank 0, and said to be by ranks 0, 1",
    ),
}


@pytest.mark.parametrize("conflict", CONFLICTS)
def test_pieces_that_do_not_fit_together(conflict: str) -> None:
    make, message = CONFLICTS[conflict]
    assert message in complaint(Layout(1, 1, 2), replaced("x", make))


def test_many_conflicts_are_counted() -> None:
    def change(tensors: dict[str, Placed], rank: int) -> None:
        for placed in tensors.values():
            placed.local.fill_(rank)

    said = complaint(Layout(1, 1, 2), change)
    assert said.count("has other values on rank 0 than on rank 1") == 3
    assert "; and 13 more" in said


def test_nothing_is_written_where_ranks_disagree(tmp_path: Path) -> None:
    from evo_core.checkpoint import TrainState, save
    from evo_core.config import load_config
    from evo_core.model import build_model

    (tmp_path / "job.yaml").write_text(
        "model_type: LLAMA2\n"
        "model: {num_layers: 1, hidden_size: 16, num_attention_heads: 2, num_kv_attention_heads: 1, vocab_size: 32,\n"
        "        dtype: torch.float32}\n"
    )

    def drifted() -> str:
        cfg = load_config(tmp_path / "job.yaml")
        torch.manual_seed(0)
        model = build_model(cfg.model)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        if dist.get_rank() == 1:
            model.state_dict()["norm.weight"][3] += 1
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path / "ckpt", cfg, model, {}, TrainState(step=1))
        return str(caught.value)

    (said,) = set(run_on_ranks(drifted, 2))
    assert "model/norm.weight has other values on rank 0 than on rank 1" in said
    assert not (tmp_path / "ckpt").exists()


def by_weights(tensor: torch.Tensor) -> int:
    """As on a GPU."""
    return int(weighed(tensor))


KINDS = [hashed, by_weights]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64]


@pytest.mark.parametrize("checksum", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_sees_a_change_and_an_exchange(checksum: Callable[[torch.Tensor], int], dtype: torch.dtype) -> None:
    values = torch.arange(30).to(dtype).view(5, 6)
    same = checksum(values)
    assert checksum(values.clone()) == same
    changed, exchanged = values.clone(), values.clone()
    changed[4, 5] = changed[4, 5] + 1 if dtype != torch.bool else False
    exchanged[0, 0], exchanged[0, 1] = values[0, 1], values[0, 0]
    assert len({same, checksum(changed), checksum(exchanged)}) == 3
    assert checksum(values.T) == checksum(values.T.contiguous())
    assert isinstance(checksum(torch.zeros((), dtype=dtype)), int)


@pytest.mark.parametrize("checksum", KINDS)
def test_a_checksum_sees_signs_and_far_places(checksum: Callable[[torch.Tensor], int]) -> None:
    chunk = 1 << 22
    values = torch.zeros(2 * chunk + 10)
    marked = {0, chunk - 1, chunk, 2 * chunk + 9}
    sums = set()
    for place in marked:
        values[place] = -0.0
        sums.add(checksum(values))
        values[place] = 0.0
    assert len(sums) == 4
    assert checksum(values) not in sums
