"""What surrounds a continuation: the ids of its prompt, its length limit, the ids that end it and that it may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evo_core.errors import DataError

if TYPE_CHECKING:
    from evo_core.data.tokenizers import Tokenizer
    from evo_core.model import Decoder

DEFAULT_MAX_LENGTH = 100


def ids_of(
    prompt: str | Sequence[int],
    number: int,
    model: Decoder,
    tokenizer: Tokenizer | None,
    bos_id: int | None = None,
    pad_id: int | None = None,
) -> list[int]:
    """The token ids of a prompt: a text after what the tokenizer begins texts with, or ids without padding around them.

    A text that spells a special token is text; a prompt with special tokens is given as ids, or as a conversation.

    Args:
        number: its place, for messages.
        bos_id: put before a text; None takes what the tokenizer begins texts with.
        pad_id: None takes the tokenizer's, if it has one.

    Raises:
        DataError: it has no tokens, or one outside the vocabulary; text without a tokenizer.
    """
    bos = tokenizer.bos_id if bos_id is None and tokenizer is not None else bos_id
    pad = tokenizer.pad_id if pad_id is None and tokenizer is not None else pad_id
    if not isinstance(prompt, str):
        ids = _without_padding([int(token) for token in prompt], None if pad == bos else pad)
    elif tokenizer is None:
        raise DataError(f"prompt {number + 1} is text, and there is no tokenizer")
    else:
        ids = [*(tokenizer.begin if bos_id is None else [bos_id]), *tokenizer.encode(prompt)]
    if not ids:
        raise DataError(f"prompt {number + 1} has no tokens", hint="set generation.bos_id to start from nothing")
    vocab = model.cfg.vocab_size
    outside = next((token for token in ids if not 0 <= token < vocab), None)
    if outside is not None:
        raise DataError(f"prompt {number + 1} holds token id {outside}, outside the model's vocabulary of {vocab}")
    return ids


def limit_of(prompt_length: int, max_length: int | None, max_new_tokens: int | None) -> int:
    """Tokens of prompt and continuation together."""
    if max_new_tokens is not None:
        return prompt_length + max_new_tokens
    return DEFAULT_MAX_LENGTH if max_length is None else max_length


def ending_ids(eos_id: int | Sequence[int] | None, tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids that end a text: as stated, else the tokenizer's, else none."""
    if eos_id is None:
        eos_id = tokenizer.eos_id if tokenizer is not None else None
    if eos_id is None:
        return frozenset()
    return frozenset([eos_id] if isinstance(eos_id, int) else eos_id)


def drawable(model: Decoder, tokenizer: Tokenizer | None) -> int:
    """Ids below this may be chosen: a vocabulary padded beyond the tokenizer's has ids that mean nothing."""
    vocab: int = model.cfg.vocab_size
    return vocab if tokenizer is None else min(vocab, tokenizer.vocab_size)


def _without_padding(ids: list[int], pad: int | None) -> list[int]:
    start, end = 0, len(ids)
    while start < end and ids[start] == pad:
        start += 1
    while end > start and ids[end - 1] == pad:
        end -= 1
    return ids[start:end]
