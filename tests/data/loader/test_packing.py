"""Packs by hand; what holds for all of them is in test_packing_properties."""

from __future__ import annotations

import numpy as np
import pytest

from evo_core.data.loader.packing import IGNORE, Pieces, pack


def pieces(*parts: tuple[list[int], int]) -> Pieces:
    """(tokens, the token that follows) of each part."""
    ids = [np.array(part, np.int32) for part, _ in parts]
    return Pieces(ids, np.array([len(part) for part in ids], np.int64), np.array([following for _, following in parts]))


def test_separate() -> None:
    made = pack(pieces(([5, 6, 7, 8, 9], IGNORE), ([1, -2], 3)), packed_length=8, seq_len=4)
    assert made.input_ids.tolist() == [5, 6, 7, 8, 9, 1, 2, 0]
    assert made.labels.tolist() == [6, 7, 8, 9, IGNORE, IGNORE, 3, IGNORE]
    assert made.cu_seqlens.tolist() == [0, 4, 5, 7, 8]
    assert made.positions.tolist() == [0, 1, 2, 3, 0, 0, 1, 0]


def test_into_one() -> None:
    made = pack(
        pieces(([5, 6, 7, 8, 9], IGNORE), ([1, 0, 3], IGNORE)),
        packed_length=8,
        seq_len=4,
        into_one=True,
        mask_token_zero=True,
    )
    assert made.input_ids.tolist() == [5, 6, 7, 8, 9, 1, 0, 3]
    assert made.labels.tolist() == [6, 7, 8, 9, IGNORE, IGNORE, 3, IGNORE]
    assert made.cu_seqlens.tolist() == [0, 4, 8]
    assert made.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_rows() -> None:
    made = pack(pieces(([5, -6, 7], IGNORE), ([1], IGNORE)), packed_length=12, seq_len=4, rows=True)
    assert made.input_ids.tolist() == [5, 6, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert made.labels.tolist() == [IGNORE, 7, *[IGNORE] * 10]
    assert made.cu_seqlens.tolist() == [0, 4, 8, 12]
    assert made.positions.tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("rows", [False, True])
def test_padding_alone(rows: bool) -> None:
    made = pack(pieces(), packed_length=8, seq_len=4, rows=rows)
    assert made.input_ids.tolist() == [0] * 8
    assert made.labels.tolist() == [IGNORE] * 8
    assert made.cu_seqlens.tolist() == [0, 4, 8]
    assert made.cu_seqlens.dtype == np.int32


def test_what_follows_can_be_context_or_masked() -> None:
    for token, masked, label in ((-7, False, IGNORE), (0, False, 0), (0, True, IGNORE), (7, True, 7)):
        made = pack(pieces(([5, 6], token)), packed_length=2, seq_len=2, mask_token_zero=masked)
        assert made.labels.tolist() == [6, label]


def test_arrays_of_the_callers_own() -> None:
    out = np.full((3, 4), 99)
    made = pack(pieces(([5, 6, 7], IGNORE)), packed_length=4, seq_len=4, out=out)
    assert out.tolist() == [[5, 6, 7, 0], [6, 7, IGNORE, IGNORE], [0, 1, 2, 0]]
    assert np.shares_memory(made.labels, out)


def test_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack(pieces((list(range(9)), IGNORE)), packed_length=8, seq_len=8)
    with pytest.raises(ValueError, match="do not fit"):
        pack(pieces(([1], IGNORE), ([2], IGNORE)), packed_length=4, seq_len=4, rows=True)
