"""Packs: micro-batches of constant length, filled with pieces of documents.

Pieces lie behind each other; a document that does not end inside a pack goes on in another. ``cu_seqlens``
tells attention what belongs together:

- separate (``pack_sample_into_one: false``): each piece is a sequence of its own, cut every seq_len tokens.
  Nothing attends across documents.
- into one (``pack_sample_into_one: true``): the pack is cut every seq_len tokens, wherever documents end, and
  attention crosses documents inside a cut.
- rows (``use_packed_dataset: false``): the pack is cut every seq_len tokens, and each cut holds the first seq_len
  tokens of one document and padding.

In all of them the label of a token is the next token of its own document, and -100 where that document ends: no
label crosses documents. A token at a cut has its true next token as its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

IGNORE = -100


class Pieces(NamedTuple):
    """Parts of documents.

    Attributes:
        ids: the tokens of each part, of any integer type.
        lengths: int64 [parts], how many.
        following: int64 [parts], the token that the document goes on with, -100 where it ends.
    """

    ids: list[np.ndarray]
    lengths: np.ndarray
    following: np.ndarray

    @classmethod
    def joined(cls, several: Sequence[Pieces]) -> Pieces:
        """Parts behind each other."""
        if len(several) == 1:
            return several[0]
        return cls(
            [part for pieces in several for part in pieces.ids],
            np.concatenate([pieces.lengths for pieces in several]),
            np.concatenate([pieces.following for pieces in several]),
        )

    @classmethod
    def whole(cls, ids: Sequence[np.ndarray]) -> Pieces:
        """Documents as they are: [tokens] of each, of any integer type."""
        return cls(list(ids), np.array([len(part) for part in ids], np.int64), np.full(len(ids), IGNORE))


@dataclass(frozen=True)
class Pack:
    """One micro-batch.

    Attributes:
        input_ids, labels, positions: int64 [packed_length]; positions count from 0 in each sequence.
        cu_seqlens: int32 [sequences + 1], 0 … packed_length.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    cu_seqlens: np.ndarray


def pack(
    pieces: Pieces,
    *,
    packed_length: int,
    seq_len: int,
    into_one: bool = False,
    rows: bool = False,
    mask_token_zero: bool = False,
    out: np.ndarray | None = None,
) -> Pack:
    """Put pieces into a pack; what they leave free is padding (id 0, label -100, sequences of its own).

    A negative id is context: its absolute value is the input, and it is no label.

    Args:
        pieces: at most packed_length tokens together; with `rows` at most seq_len in each and as many as there are
            rows.
        packed_length: a multiple of seq_len.
        seq_len: tokens of the longest sequence.
        into_one, rows: see the module.
        mask_token_zero: True makes token 0 no label, as InternEvo does.
        out: int64 [3, packed_length], where the pack's three arrays are put; None makes them.

    Raises:
        ValueError: the pieces do not fit.
    """
    length = int(pieces.lengths.sum())
    if length > packed_length or (rows and len(pieces.ids) * seq_len > packed_length):
        raise ValueError(f"pieces of {length} tokens do not fit into a pack of {packed_length}")
    if out is None:
        out = np.empty((3, packed_length), np.int64)
    ids, labels, positions = out
    starts = np.cumsum(pieces.lengths) - pieces.lengths
    if rows:
        starts = np.arange(len(pieces.ids)) * seq_len
        ids[:] = 0
        labels[:] = IGNORE
        for part, start in zip(pieces.ids, starts.tolist(), strict=True):
            ids[start : start + len(part)] = part
            labels[start : start + len(part) - 1] = part[1:]
    else:
        if pieces.ids:  # copied once, and widened to int64 on the way
            np.concatenate(pieces.ids, out=ids[:length], casting="same_kind")
        ids[length:] = 0
        last = max(length - 1, 0)
        labels[:last] = ids[1 : last + 1]
        labels[last:] = IGNORE
    least = 1 if mask_token_zero else 0
    # The shift above gave each piece's last token the first one of another document.
    labels[starts + pieces.lengths - 1] = np.where(pieces.following < least, IGNORE, pieces.following)
    if int(ids.min()) < least:  # looking is cheaper than doing, and most data have none of these
        # Labels before ids: it is the sign that says what is no label, and abs takes it away.
        np.copyto(labels, IGNORE, where=labels < least)
        np.abs(ids, out=ids)
    if into_one or rows:
        cuts = np.arange(0, packed_length, seq_len)
    else:
        cuts = _cuts(starts, pieces.lengths, length, packed_length, seq_len)
    cu_seqlens = np.empty(len(cuts) + 1, np.int32)
    cu_seqlens[:-1], cu_seqlens[-1] = cuts, packed_length
    count_positions(cu_seqlens, positions)
    return Pack(ids, labels, positions, cu_seqlens)


def count_positions(cu_seqlens: np.ndarray, out: np.ndarray) -> None:
    """Number the tokens of a pack from 0 in each sequence.

    Args:
        cu_seqlens: int32 [sequences + 1], 0 … packed_length.
        out: int64 [packed_length], where the numbers are put.
    """
    starts = cu_seqlens[:-1].astype(np.int64)
    np.subtract(_counted(len(out)), np.repeat(starts, np.diff(cu_seqlens)), out=out)


def split(cu_seqlens: np.ndarray, packed_length: int) -> list[np.ndarray]:
    """The cu_seqlens of each pack, int32 [sequences + 1] from 0, where full packs lie behind each other as one.

    Args:
        cu_seqlens: int32 [sequences + 1] of all of them; no sequence may cross the end of a pack.
    """
    bounds = cu_seqlens.searchsorted(np.arange(0, int(cu_seqlens[-1]) + 1, packed_length)).tolist()
    return [
        cu_seqlens[start : end + 1] - np.int32(row * packed_length) for row, (start, end) in enumerate(pairwise(bounds))
    ]


def _cuts(starts: np.ndarray, lengths: np.ndarray, filled: int, packed_length: int, seq_len: int) -> np.ndarray:
    """Where sequences start: at every piece, every seq_len tokens in it, and likewise in the padding, int64."""
    if filled < packed_length:
        starts, lengths = np.append(starts, filled), np.append(lengths, packed_length - filled)
    if int(lengths.max()) <= seq_len:
        return starts
    # Piece i is cut into counts[i] sequences, the k-th of which starts at starts[i] + k * seq_len. With the sequences
    # of all pieces numbered in a row, k is that number less `before`, so one arange serves all.
    counts = -(-lengths // seq_len)
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before * seq_len, counts) + seq_len * np.arange(int(counts.sum()))


_numbers = np.arange(0)


def _counted(length: int) -> np.ndarray:
    """The numbers 0 … length - 1, int64, not to be written to; kept, since every pack needs them."""
    # Threads that draw batches may both make them longer; each then goes on with what it has in `numbers`.
    global _numbers
    numbers = _numbers
    if len(numbers) < length:
        _numbers = numbers = np.arange(length)
    return numbers[:length]
