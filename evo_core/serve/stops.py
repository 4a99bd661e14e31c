"""Stop texts: a continuation ends before the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evo_core.errors import DataError

if TYPE_CHECKING:
    from evo_core.data.tokenize.tokenizers import Tokenizer


class StopIds:
    """Finds the special tokens that stop texts spell: these have no text of their own in which they could be met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, texts: Sequence[str], ids: Sequence[int]) -> frozenset[int]:
        """The ids that end a continuation: those stated, and those of texts that are special tokens.

        Raises:
            DataError: a stated id is outside the vocabulary.
        """
        size = self._tokenizer.vocab_size
        outside = next((token for token in ids if not 0 <= token < size), None)
        if outside is not None:
            raise DataError(f"stop_token_ids holds {outside}, outside the tokenizer's vocabulary of {size}")
        named = {token for text in texts if (token := self._special_id(text)) is not None}
        return frozenset(named | set(ids))

    def _special_id(self, text: str) -> int | None:
        token = self._tokenizer.special.get(text)
        if token is None:
            token = self._tokenizer.token_id(text)
            if token is not None and self._tokenizer.decode([token, token]):  # a space alone has no text at a start
                return None
        return token


class StopTexts:
    """Holds back what may be the start of a stop text until it is known.

    Args:
        stops: none of them empty.

    Attributes:
        found: whether one was met; nothing is told after it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What is certain to stand before any stop text."""
        text = self._held + piece
        starts = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back when the text ended another way."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that a stop text begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
