"""One document of a token file as text: what is only read, and what is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from evo_core.data.inspection.find import ShardFile, find_origin
from evo_core.data.shards.format import BinReader
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError


@dataclass(frozen=True)
class DecodedPart:
    """Neighbouring tokens of one sort.

    Attributes:
        trained: whether they are trained on.
        tokens: how many.
        text: what they say, special tokens by their names; None without a tokenizer.
    """

    trained: bool
    tokens: int
    text: str | None


@dataclass(frozen=True)
class SpecialToken:
    """A special token in a document: an id of its own, which text that spells it does not have.

    Attributes:
        at: its position among the tokens, from 1.
        id: without its minus.
        piece: its name.
    """

    at: int
    id: int
    piece: str


@dataclass(frozen=True)
class DecodedDocument:
    """One document.

    Attributes:
        shard: its file.
        number: its line in the file, from 1.
        origin: the raw file it was made from, if that is known.
        ids: as they are in the file.
        parts: the same, decoded.
        special: the special tokens among them; none without a tokenizer.
    """

    shard: ShardFile
    number: int
    origin: str | None
    ids: list[int]
    parts: list[DecodedPart]
    special: list[SpecialToken]

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "file": str(self.shard.path),
            "line": self.number,
            "split": self.shard.split,
            "type": self.shard.type,
            "origin": self.origin,
            "ids": self.ids,
            "parts": [vars(part) for part in self.parts],
            "special": [vars(token) for token in self.special],
        }


def decode_documents(
    shards: Sequence[ShardFile], numbers: range, tokenizer: Tokenizer | None
) -> Iterator[DecodedDocument]:
    """Documents by their numbers, from 1 and counted through all shards.

    Raises:
        DataError: there are not as many documents, a file is damaged, or an id is not in the vocabulary.
    """
    before, wanted = 0, list(numbers)
    for shard in shards:
        reader = BinReader(shard.path)
        while wanted and wanted[0] <= before + len(reader):
            document = wanted.pop(0) - before - 1
            ids = reader.tokens(document)
            try:
                parts = _parts(ids, tokenizer)
            except DataError as error:
                raise DataError(
                    error.message,
                    file=shard.path,
                    line=document + 1,
                    hint="the tokens were made with another tokenizer; name it with --tokenizer",
                ) from None
            special = _special(ids, tokenizer)
            yield DecodedDocument(shard, document + 1, find_origin(shard.path, document), ids.tolist(), parts, special)
        before += len(reader)
    if len(wanted) == len(numbers):
        raise DataError(f"there is no sample {wanted[0]}: there are {before}", file=shards[-1].path)


def _parts(ids: np.ndarray, tokenizer: Tokenizer | None) -> list[DecodedPart]:
    parts = []
    for trained, run in groupby(ids.tolist(), key=lambda token: token >= 0):
        tokens = [abs(token) for token in run]
        parts.append(DecodedPart(trained, len(tokens), None if tokenizer is None else _text(tokens, tokenizer)))
    return parts


def _text(tokens: list[int], tokenizer: Tokenizer) -> str:
    """The text, with the names of tokens that a decoder leaves out."""
    hidden = {token for token in set(tokens) if _is_special(token, tokenizer)}
    text = ""
    for is_hidden, run in groupby(tokens, key=lambda token: token in hidden):
        part = list(run)
        text += "".join(map(tokenizer.piece, part)) if is_hidden else tokenizer.decode(part)
    return text


def _special(ids: np.ndarray, tokenizer: Tokenizer | None) -> list[SpecialToken]:
    if tokenizer is None:
        return []
    special = {token for token in set(np.abs(ids).tolist()) if _is_special(token, tokenizer)}
    tokens = enumerate(np.abs(ids).tolist(), 1)
    return [SpecialToken(at, token, tokenizer.piece(token)) for at, token in tokens if token in special]


def _is_special(token: int, tokenizer: Tokenizer) -> bool:
    piece = tokenizer.piece(token)
    if piece in tokenizer.special:
        return True
    named = piece.startswith(("<", "[")) and piece.endswith((">", "]"))
    return named and not tokenizer.decode([token])
