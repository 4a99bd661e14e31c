"""Held-out data: every token of every document is predicted exactly once, except the first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evo_core.data.corpus.corpus import open_corpus
from evo_core.data.corpus.document_set import TokenizedDocuments
from evo_core.data.corpus.random_data import VALID_DOCUMENTS, RandomDocuments
from evo_core.data.loader.batch import Batch, stack
from evo_core.data.loader.packing import Pieces, pack
from evo_core.data.shards.folder import RANDOM_TYPES, data_types
from evo_core.errors import DataError

# Another set than the one trained on, and ids that every vocabulary has room for.
_RANDOM_SEED = 2000
_RANDOM_VOCAB = 200


class Window(NamedTuple):
    """Inputs [start, start + length) of a document; its labels lie one further."""

    document: int
    start: int
    length: int


def validation_batches(
    folder: str | Path | None,
    data_type: str,
    *,
    seq_len: int,
    micro_bsz: int,
    dp_rank: int,
    dp_size: int,
    mask_token_zero: bool = False,
    vocab_size: int | None = None,
) -> Iterator[Batch]:
    """The held-out documents of one data type, as batches of one micro-batch.

    A document is cut into windows of seq_len inputs, each seen without what is before it; windows stay whole
    and fill packs of seq_len * micro_bsz, so what a token is predicted from depends on neither micro_bsz nor
    the number of ranks. What stays free is padding, labelled -100, as are tokens that are context (negative ids).

    Every rank gets the same number of batches, the last of which may be padding alone on some ranks: sum over
    labels and divide once at the end.

    Args:
        folder: folder of token shards; None gives random data.
        data_type: one of `data_types(folder)`.
        seq_len, micro_bsz: shape of a batch.
        dp_rank, dp_size: this data-parallel rank, and how many there are.
        mask_token_zero: True makes token 0 no label.
        vocab_size: ids must be below it.

    Raises:
        DataError: there is no such data, or an id is outside the vocabulary.
    """
    types = data_types(folder)
    if data_type not in types:
        raise DataError(f"there is no data type {data_type}, only {', '.join(types)}", file=folder)
    documents = _documents(folder, data_type, seq_len, vocab_size)
    packs = _fill(_windows(documents.lengths, seq_len), seq_len * micro_bsz)
    while len(packs) % dp_size:
        packs.append([])

    def batches() -> Iterator[Batch]:
        for windows in packs[dp_rank::dp_size]:
            filled = pack(
                _pieces(documents, windows),
                packed_length=seq_len * micro_bsz,
                seq_len=seq_len,
                mask_token_zero=mask_token_zero,
            )
            yield stack([filled], [types.index(data_type)])

    return batches()


def _documents(folder: str | Path | None, data_type: str, seq_len: int, vocab_size: int | None) -> TokenizedDocuments:
    if folder is None:
        count = VALID_DOCUMENTS if data_type == RANDOM_TYPES[0] else 0
        return RandomDocuments(
            count, seq_len=seq_len, fixed_length=False, vocab_size=vocab_size or _RANDOM_VOCAB, seed=_RANDOM_SEED
        )
    return open_corpus(Path(folder), [data_type], vocab_size=vocab_size).documents[data_type]


def _pieces(documents: TokenizedDocuments, windows: list[Window]) -> Pieces:
    """Windows with the token that follows each."""
    numbers, starts, lengths = np.array(windows, np.int64).reshape(-1, 3).T
    ids = documents.read(numbers, starts, starts + lengths + 1)
    following = np.array([part[-1] for part in ids], np.int64)
    return Pieces([part[:-1] for part in ids], lengths, following)


def _windows(lengths: np.ndarray, seq_len: int) -> list[Window]:
    """Windows of all documents; a document's last token is no input, since nothing follows it."""
    return [
        Window(document, start, min(seq_len, inputs - start))
        for document, inputs in enumerate((lengths - 1).tolist())
        for start in range(0, inputs, seq_len)
    ]


def _fill(windows: list[Window], packed_length: int) -> list[list[Window]]:
    """Windows put into as few packs as the best-fit-decreasing rule needs."""
    packs: list[list[Window]] = []
    free: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for window in sorted(windows, key=lambda window: -window.length):
        tightest = bisect_left(free, (window.length, -1))  # the pack with the least room that still holds it
        if tightest < len(free):
            room, number = free.pop(tightest)
        else:
            room, number = packed_length, len(packs)
            packs.append([])
        packs[number].append(window)
        if room > window.length:
            insort(free, (room - window.length, number))
    return packs
