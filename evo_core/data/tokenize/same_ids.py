"""Whether two tokenizers give ids the same meaning: tokens of one are read by weights that learned the other's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evo_core.data.tokenize.tokenizer import Tokenizer

MOST_RENAMED = 0.01
"""Share of ids that may be spelled otherwise: chat models give names to unused pieces, and a ``tokenizer.json`` spells
a few otherwise than the SentencePiece model that it was made of. Of two vocabularies nearly all differ."""


def disagreement(data: Tokenizer, weights: Tokenizer) -> str | None:
    """What is wrong with tokens of the one for weights of the other, for people; None where they agree.

    One may have more ids than the other; those that both have are compared by their pieces.
    """
    if data.digest == weights.digest:
        return None
    common = range(min(data.vocab_size, weights.vocab_size))
    others = [token for token in common if data.piece(token) != weights.piece(token)]
    if len(others) <= MOST_RENAMED * len(common):
        return None
    first = others[0]
    return (
        f"the data were tokenized with another tokenizer than that of the weights: id {first} is "
        f"{data.piece(first)!r} in {data.path} and {weights.piece(first)!r} in {weights.path}, and so with "
        f"{len(others):,} of {len(common):,} ids"
    )
