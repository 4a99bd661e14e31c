"""Pieces of tensors: every way of cutting one gives each element to just those ranks that say so."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evo_core.placement import Piece, Placed, Placement, Rectangle, Span, span, tiling_fault


def pieces_by_place(placements: dict[int, Placement]) -> dict[Rectangle, list[int]]:
    """The ranks that hold each rectangle; checks that each piece names them."""
    held: dict[Rectangle, list[int]] = defaultdict(list)
    for rank, placement in placements.items():
        for piece in placement.pieces:
            held[piece.where].append(rank)
    for placement in placements.values():
        for piece in placement.pieces:
            assert list(piece.ranks) == held[piece.where]
    return dict(held)


def local_of(placement: Placement, whole: torch.Tensor) -> torch.Tensor:
    placed = Placed(whole.new_full(placement.local_shape, -1), placement)
    placed.fill(whole)
    return placed.local


def test_rows_are_cut_as_torch_cuts_them() -> None:
    assert [span(7, index, 3) for index in range(3)] == [(0, 3), (3, 6), (6, 7)]
    assert [span(2, index, 4) for index in range(4)] == [(0, 1), (1, 2), (2, 2), (2, 2)]
    rows = torch.arange(11)
    for count in range(1, 6):
        assert [len(part) for part in rows.chunk(count)] == [
            stop - start for start, stop in (span(11, index, count) for index in range(count)) if stop > start
        ]
    with pytest.raises(ValueError, match="part 3 of 3"):
        span(7, 3, 3)


def test_the_whole_is_one_piece_that_its_first_rank_counts() -> None:
    placement = Placement.whole((3, 4), [2, 0, 1])
    assert placement.pieces == (Piece(Rectangle((0, 0), (3, 4)), (0, 0), (0, 1, 2)),)
    assert placement.pieces[0].owner == 0
    assert Placement.whole((3, 0), [0]).pieces == ()
    assert Placement.whole((), [0]).pieces[0].where == Rectangle((), ())


def test_columns_of_a_whole() -> None:
    whole = torch.arange(12).view(3, 4)
    placement = Placement.cut((3, 4), 1, 1, 2, [5])
    assert placement.local_shape == (3, 2)
    assert torch.equal(local_of(placement, whole), whole[:, 2:])


def test_a_fused_tensor_is_cut_segment_by_segment() -> None:
    whole = torch.arange(24).view(12, 2)
    placement = Placement.fused((12, 2), 0, (8, 2, 2), 1, 2, [1])
    assert [piece.where.offsets[0] for piece in placement.pieces] == [4, 9, 11]
    assert torch.equal(local_of(placement, whole), torch.cat([whole[4:8], whole[9:10], whole[11:12]]))
    assert len(Placement.fused((12, 2), 0, (8, 2, 2), 0, 1, [0]).pieces) == 1  # not cut: no three pieces of it
    with pytest.raises(ValueError, match=r"segments \[8, 2\]"):
        Placement.fused((12, 2), 0, (8, 2), 0, 2, [0])


def test_heads_on_several_ranks_have_ranks_of_their_own() -> None:
    """Four query heads over four ranks, one key and one value head, which all have; two ZeRO ranks of each."""
    shape, placements = (6, 2), {}
    for rank in range(8):
        tensor, zero = rank % 4, rank // 4
        mine, everybody = [tensor, tensor + 4], range(8)
        spans = [Span(tensor, tensor + 1, mine), Span(4, 5, everybody), Span(5, 6, everybody)]
        same_share = range(zero * 4, zero * 4 + 4)
        placements[rank] = Placement.joined(shape, 0, spans).share(zero, 2, same_share)
    held = pieces_by_place(placements)
    assert tiling_fault(shape, held) is None
    assert held[Rectangle((0, 0), (1, 2))] == [0]
    assert held[Rectangle((4, 0), (1, 2))] == [0, 1, 2, 3]
    assert held[Rectangle((5, 0), (1, 2))] == [4, 5, 6, 7]


@given(
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple),
    tensor=st.integers(1, 4),
    zero=st.integers(1, 4),
    replicas=st.integers(1, 3),
    data=st.data(),
)
def test_shares_of_pieces_make_up_the_whole(
    shape: tuple[int, ...], tensor: int, zero: int, replicas: int, data: st.DataObject
) -> None:
    """Whatever is cut by whatever and then by rows: each element is in one rectangle, with the right numbers in it."""
    dim = data.draw(st.integers(0, len(shape) - 1))
    border = data.draw(st.integers(0, shape[dim]))
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    placements = {}
    for rank in range(tensor * zero * replicas):
        t, z = rank % tensor, rank // tensor % zero
        same_piece = range(t, tensor * zero * replicas, tensor)
        same_share = [r for r in range(tensor * zero * replicas) if r // tensor % zero == z]
        cut = Placement.fused(shape, dim, (border, shape[dim] - border), t, tensor, same_piece)
        placement = placements[rank] = cut.share(z, zero, same_share)
        full = local_of(cut, whole)
        start, stop = span(cut.local_shape[0], z, zero)
        assert torch.equal(local_of(placement, whole), full[start:stop])
        assert placement.numel == full[start:stop].numel()
    held = pieces_by_place(placements)
    assert tiling_fault(shape, held) is None
    assert all(len(ranks) == replicas for ranks in held.values())


def test_a_scalar_is_one_row() -> None:
    scalar = Placement.whole((), range(4))
    first, second = scalar.share(0, 2, [0, 1]), scalar.share(1, 2, [2, 3])
    assert (first.local_shape, first.numel, len(first.pieces)) == ((), 1, 1)
    assert (second.local_shape, second.numel, second.pieces) == ((0,), 0, ())
    assert local_of(first, torch.tensor(5)) == 5


def test_a_piece_is_a_view() -> None:
    placed = Placed(torch.zeros(2, 3), Placement.cut((4, 3), 0, 1, 2, [0]))
    [(piece, view)] = placed.pieces()
    view.fill_(7)
    assert placed.local.sum() == 42
    assert str(piece.where) == "[2:4, 0:3]"
    with pytest.raises(ValueError, match=r"\[3, 2\] in place of \[2, 3\]"):
        Placed(torch.zeros(3, 2), placed.placement)


def test_what_is_no_tiling() -> None:
    def box(top: int, left: int, height: int, width: int) -> Rectangle:
        return Rectangle((top, left), (height, width))

    left, right = box(0, 0, 4, 2), box(0, 2, 4, 2)
    assert tiling_fault((4, 4), [left, right, box(1, 1, 0, 2)]) is None
    assert tiling_fault((4, 4), [right]) == "8 of 16 elements are missing"
    assert tiling_fault((4, 4), [right, box(3, 1, 1, 2)]) == "[0:4, 2:4] and [3:4, 1:3] overlap"
    assert tiling_fault((4, 4), [box(0, 0, 5, 2)]) == "[0:5, 0:2] reaches out of [4, 4]"
    assert tiling_fault((), []) == "1 of 1 elements are missing"
    assert tiling_fault((), [Rectangle((), ())]) is None
    assert "overlap" in str(tiling_fault((), [Rectangle((), ()), Rectangle((), ())]))


def test_a_piece_belongs_to_somebody() -> None:
    with pytest.raises(ValueError, match="no rank holds"):
        Placement.whole((2,), [0, 1]).share(0, 2, [2])
