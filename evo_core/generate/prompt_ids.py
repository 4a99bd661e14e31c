"""What surrounds a continuation: the ids of its prompt, its length limit, the ids that end it and that it may hold."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from evo_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import nn

    from evo_core.data.tokenize.tokenizers import Tokenizer
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
        number: its position, for messages.
        bos_id: put before a text; None takes what the tokenizer begins texts with.
        pad_id: None takes the tokenizer's, if it has one.

    Raises:
        DataError: it has no tokens, or one that is outside the vocabulary or no whole number; text without a
            tokenizer, or with half a surrogate pair.
    """
    bos = tokenizer.bos_id if bos_id is None and tokenizer is not None else bos_id
    pad = tokenizer.pad_id if pad_id is None and tokenizer is not None else pad_id
    if not isinstance(prompt, str):
        ids = _without_padding(token_ids(prompt, f"prompt {number + 1}"), None if pad == bos else pad)
    elif tokenizer is None:
        hint = "name it in the job's data.tokenizer_path before training, or give token ids"
        raise DataError(f"prompt {number + 1} is text, and there is no tokenizer with the model", hint=hint)
    else:
        check_text(prompt, f"prompt {number + 1}")
        ids = [*(tokenizer.begin if bos_id is None else [bos_id]), *tokenizer.encode(prompt)]
    check_ids(ids, f"prompt {number + 1}", model, tokenizer)
    return ids


def token_ids(given: Sequence[Any], name: str) -> list[int]:
    """A list of whole numbers, of whatever library.

    Args:
        name: what it is, for messages.

    Raises:
        DataError: one of them is no whole number.
    """
    try:
        if any(isinstance(token, bool) for token in given):
            raise TypeError
        return [index(token) for token in given]
    except TypeError:
        raise DataError(f"{name} is neither a text nor a list of token ids (whole numbers)") from None


def check_ids(ids: Sequence[int], name: str, model: Decoder, tokenizer: Tokenizer | None) -> None:
    """See that there are ids, and that the model and the tokenizer know all of them.

    Raises:
        DataError: they are none, or one is outside the smaller of the two vocabularies.
    """
    if not ids:
        raise DataError(f"{name} has no tokens", hint="set generation.bos_id to start from nothing")
    size, owner = model.cfg.vocab_size, "model"
    if tokenizer is not None and tokenizer.vocab_size < size:
        size, owner = tokenizer.vocab_size, "tokenizer"
    outside = next((token for token in ids if not 0 <= token < size), None)
    if outside is not None:
        raise DataError(f"{name} holds token id {outside}, outside the {owner}'s vocabulary of {size}")


def check_text(text: str, name: str) -> None:
    """See that a text can be written as UTF-8.

    Raises:
        DataError: it holds half of a surrogate pair, as JSON can spell one; names the character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!a}"
        raise DataError(f"{name} has half a surrogate pair ({half}) at character {error.start + 1}") from None


def limit_of(prompt_length: int, max_length: int | None, max_new_tokens: int | None) -> int:
    """Tokens of prompt and continuation together.

    Raises:
        ConfigError: a limit that leaves room for nothing.
    """
    for name, limit, least in (("max_length", max_length, 1), ("max_new_tokens", max_new_tokens, 0)):
        if limit is not None and limit < least:
            raise ConfigError(f"{limit} must be {least} or more", key=f"generation.{name}")
    if max_new_tokens is not None:
        return prompt_length + max_new_tokens
    return DEFAULT_MAX_LENGTH if max_length is None else max_length


def ending_ids(eos_id: int | Sequence[int] | None, model: nn.Module, tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids that end a text: as stated, else those that the model's weights came with and the tokenizer's."""
    if eos_id is not None:
        return frozenset([eos_id] if isinstance(eos_id, int) else eos_id)
    own = () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)
    return frozenset([*getattr(model, "ending", ()), *own])


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
