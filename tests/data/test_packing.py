"""Packs lose and invent no token, and leak no label across documents."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.data.packing import IGNORE, Pack, Piece, pack
from evo_core.data.sampling import ShuffledStream


class Listed:
    """Documents given as lists."""

    def __init__(self, documents: list[list[int]]) -> None:
        self._documents = documents
        self.lengths = np.array([len(d) for d in documents], np.int64)

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        return np.array(self._documents[document][start:stop])


@st.composite
def corpora(draw: st.DrawFn) -> list[list[int]]:
    """Documents in which no id occurs twice, so that every token can be told; some tokens are context."""
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    signs = st.sampled_from([1, 1, 1, -1]) if draw(st.booleans()) else st.just(1)
    first = 0
    documents = []
    for length in lengths:
        documents.append([i * draw(signs) for i in range(first, first + length)])
        first += length
    return documents


def _packs(documents: list[list[int]], shape: tuple[int, int], count: int, **options: bool) -> list[Pack]:
    seq_len, micro_bsz = shape
    packed_length = seq_len * micro_bsz
    stream = ShuffledStream(Listed(documents), seed=3, name="en")
    return [
        pack(
            stream.pieces(k * packed_length, (k + 1) * packed_length),
            packed_length=packed_length,
            seq_len=seq_len,
            **options,
        )
        for k in range(count)
    ]


@given(corpora(), st.tuples(st.integers(1, 9), st.integers(1, 4)), st.booleans(), st.booleans())
def test_no_token_and_no_label_is_lost_or_invented(
    documents: list[list[int]], shape: tuple[int, int], into_one: bool, mask_token_zero: bool
) -> None:
    seq_len, micro_bsz = shape
    tokens = sum(map(len, documents))
    count = -(-3 * tokens // (seq_len * micro_bsz))
    packs = _packs(documents, shape, count, into_one=into_one, mask_token_zero=mask_token_zero)
    following = {abs(a): b for d in documents for a, b in itertools.pairwise(d)}

    inputs = np.concatenate([p.input_ids for p in packs])
    for epoch in range(3):
        part = inputs[epoch * tokens : (epoch + 1) * tokens]
        assert sorted(part.tolist()) == list(range(tokens)), "each token once in each epoch"
    for one in packs:
        for token, label in zip(one.input_ids.tolist(), one.labels.tolist(), strict=True):
            target = following.get(token)
            masked = target is None or target < 0 or (mask_token_zero and target == 0)
            assert label == (IGNORE if masked else target), "the next token of the same document, or nothing"


@given(corpora(), st.tuples(st.integers(1, 9), st.integers(1, 4)), st.booleans())
def test_sequences(documents: list[list[int]], shape: tuple[int, int], into_one: bool) -> None:
    seq_len, micro_bsz = shape
    document_of = {abs(token): n for n, d in enumerate(documents) for token in d}
    for one in _packs(documents, shape, 3, into_one=into_one):
        starts = one.cu_seqlens.tolist()
        assert (starts[0], starts[-1], one.cu_seqlens.dtype) == (0, seq_len * micro_bsz, np.int32)
        for start, end in itertools.pairwise(starts):
            assert 0 < end - start <= seq_len
            assert one.positions[start:end].tolist() == list(range(end - start))
            if not into_one:
                assert len({document_of[token] for token in one.input_ids[start:end].tolist()}) == 1
        if into_one:
            assert starts == list(range(0, seq_len * micro_bsz + 1, seq_len))


def test_separate_by_hand() -> None:
    pieces = [Piece(np.array([5, 6, 7, 8, 9]), 5), Piece(np.array([1, -2, 3]), 2)]
    made = pack(pieces, packed_length=8, seq_len=4)
    assert made.input_ids.tolist() == [5, 6, 7, 8, 9, 1, 2, 0]
    assert made.labels.tolist() == [6, 7, 8, 9, IGNORE, IGNORE, 3, IGNORE]
    assert made.cu_seqlens.tolist() == [0, 4, 5, 7, 8]
    assert made.positions.tolist() == [0, 1, 2, 3, 0, 0, 1, 0]


def test_into_one_by_hand() -> None:
    pieces = [Piece(np.array([5, 6, 7, 8, 9]), 5), Piece(np.array([1, 0, 3]), 3)]
    made = pack(pieces, packed_length=8, seq_len=4, into_one=True, mask_token_zero=True)
    assert made.input_ids.tolist() == [5, 6, 7, 8, 9, 1, 0, 3]
    assert made.labels.tolist() == [6, 7, 8, 9, IGNORE, IGNORE, 3, IGNORE]
    assert made.cu_seqlens.tolist() == [0, 4, 8]
    assert made.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_padding_alone() -> None:
    made = pack([], packed_length=6, seq_len=4)
    assert made.input_ids.tolist() == [0] * 6
    assert made.labels.tolist() == [IGNORE] * 6
    assert made.cu_seqlens.tolist() == [0, 4, 6]


def test_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack([Piece(np.arange(9), 9)], packed_length=8, seq_len=8)
