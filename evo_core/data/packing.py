"""Packs: micro-batches of constant length, filled with pieces of documents.

Pieces lie behind each other; a document that does not end inside a pack goes on in another. ``cu_seqlens``
tells attention what belongs together:

- separate (``pack_sample_into_one: false``): each piece is a sequence of its own, cut every seq_len tokens.
  Nothing attends across documents.
- into one (``pack_sample_into_one: true``): the pack is cut every seq_len tokens, wherever documents end, and
  attention crosses documents inside a cut.

Either way the label of a token is the next token of its own document, and -100 where that document ends: no
label crosses documents. A token at a cut has its true next token as its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

IGNORE = -100


class Piece(NamedTuple):
    """A part of a document.

    Attributes:
        ids: the part's tokens, and one more where the document goes on behind it.
        length: tokens of the part, without that one.
    """

    ids: np.ndarray
    length: int


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
    pieces: Sequence[Piece],
    *,
    packed_length: int,
    seq_len: int,
    into_one: bool = False,
    mask_token_zero: bool = False,
) -> Pack:
    """Put pieces into a pack; what they leave free is padding (id 0, label -100, sequences of its own).

    A negative id is context: its absolute value is the input, and it is no label.

    Args:
        pieces: at most packed_length tokens together.
        packed_length: a multiple of seq_len.
        seq_len: tokens of the longest sequence.
        into_one: see the module.
        mask_token_zero: True makes token 0 no label, as the original does.
    """
    length = sum(piece.length for piece in pieces)
    if length > packed_length:
        raise ValueError(f"pieces of {length} tokens do not fit into a pack of {packed_length}")
    ids = np.zeros(packed_length, np.int64)
    labels = np.full(packed_length, IGNORE, np.int64)
    starts: list[int] = []
    at = 0
    for piece in pieces:
        end = at + piece.length
        ids[at:end] = piece.ids[: piece.length]
        labels[at : at + len(piece.ids) - 1] = piece.ids[1:]
        starts.extend(range(at, end, seq_len))
        at = end
    starts.extend(range(at, packed_length, seq_len))
    if into_one:
        starts = list(range(0, packed_length, seq_len))
    labels[(labels < 0) | (mask_token_zero & (labels == 0))] = IGNORE
    cu_seqlens = np.array([*starts, packed_length], np.int32)
    lengths = np.diff(cu_seqlens)
    positions = np.arange(packed_length) - np.repeat(cu_seqlens[:-1].astype(np.int64), lengths)
    return Pack(np.abs(ids), labels, positions, cu_seqlens)
