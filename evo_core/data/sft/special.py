"""Special tokens written in a text: ``<|im_start|>`` becomes its id and not the letters it is spelled with.

A ``tokenizer.json`` knows its special tokens. A SentencePiece model does not look for its control pieces in a text,
nor does it know the names that a ``tokenizer_config.json`` gives to its unused pieces: the text is cut at them here.
"""

from __future__ import annotations

import re

from evo_core.data.sft.chat import tokenizer_config
from evo_core.data.tokenizers import SentencePieceTokenizer, Tokenizer


class SpecialText:
    """Encodes texts of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = special_tokens(tokenizer)
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self._ids else None

    def cut(self, text: str) -> list[str | int]:
        """The text between special tokens, and the ids of these."""
        if self._cut is None:
            return [text]
        return [self._ids.get(part, part) for part in self._cut.split(text) if part]

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token, as `Tokenizer.encode_with_offsets` gives them."""
        if self._cut is None:
            return self._tokenizer.encode_with_offsets(text)
        tokens: list[tuple[int, int, int]] = []
        at = 0
        for part in self._cut.split(text):
            if (special := self._ids.get(part)) is not None:
                tokens.append((special, at, at + len(part)))
            elif part:
                found = self._tokenizer.encode_with_offsets(part)
                tokens.extend((token, at + start, at + end) for token, start, end in found)
            at += len(part)
        return tokens


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Spelling to id of the special tokens that the tokenizer does not find by itself."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return {}
    tokens = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    names = {tokenizer.piece(token): token for token in tokens if token is not None}
    added = tokenizer_config(tokenizer).get("added_tokens_decoder")
    for token, entry in added.items() if isinstance(added, dict) else ():
        content = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(content, str) and content and str(token).isdigit():
            names[content] = int(token)
    return {name: token for name, token in names.items() if token < tokenizer.vocab_size}
