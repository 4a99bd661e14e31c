"""A model continues prompts: from texts or token ids to texts and token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from evo_core.errors import ConfigError, DataError
from evo_core.generate.batches import Batches
from evo_core.generate.sampling import Sampling
from evo_core.model import Decoder

if TYPE_CHECKING:
    from evo_core.data.tokenizers import Tokenizer

DEFAULT_MAX_LENGTH = 100


@dataclass
class Generation:
    """One prompt, continued.

    prompt: its text.
    text: the continuation alone.
    ids: the tokens of the continuation, the one that ended it included.
    finished: whether an ending token was chosen; else the length limit was reached.
    prompt_ids: the tokens of the prompt as the model read them.
    """

    prompt: str
    text: str
    ids: list[int]
    finished: bool
    prompt_ids: list[int]


def generate(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    length_penalty: float = 1.0,
    eos_id: int | Sequence[int] | None = None,
    bos_id: int | None = None,
    pad_id: int | None = None,
    batch_size: int = 1,
    seed: int = 1024,
    indices: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue prompts.

    A prompt's result depends on the seed and its number, not on the prompts beside it: batches hold no padding
    and every prompt draws from its own random numbers (up to rounding, which may differ between batch sizes in
    the last digits).

    Args:
        model: a `Decoder` with its weights.
        tokenizer: needed for text; with token prompts it may be None, and texts are then empty.
        prompts: texts, or token ids as they are (no bos is put before them).
        max_length: tokens of prompt and continuation together; 100 if neither limit is given. A longer prompt
            is cut to it.
        max_new_tokens: tokens of the continuation, in place of max_length.
        do_sample, temperature, top_k, top_p, repetition_penalty, length_penalty: see `Sampling`.
        eos_id: id or ids that end a text; None takes the tokenizer's.
        bos_id: put before a text prompt; None takes the tokenizer's, if it has one.
        pad_id: removed from both ends of token prompts (they may have been padded to one length); None takes
            the tokenizer's, if it has one.
        batch_size: prompts at a time.
        seed: of the draws.
        indices: number of each prompt, of which its draws depend; its place in ``prompts`` by default.
        progress: called after every token with (prompts done, tokens generated).

    Raises:
        ConfigError: a setting out of range, or a model of another kind.
        DataError: a prompt without tokens, or with an id outside the vocabulary; text without a tokenizer.
    """
    if not isinstance(model, Decoder):
        raise ConfigError(f"{type(model).__name__} keeps no keys and values: only the shipped families generate")
    sampling = Sampling(do_sample, temperature, top_k, top_p, repetition_penalty, length_penalty)
    given: list[str | Sequence[int]] = list(prompts)
    sequences = [_ids_of(prompt, i, model, tokenizer, bos_id, pad_id) for i, prompt in enumerate(given)]
    limits = [_limit(len(ids), max_length, max_new_tokens) for ids in sequences]
    sequences = [ids[:limit] for ids, limit in zip(sequences, limits, strict=True)]
    numbers = range(len(sequences)) if indices is None else indices
    batches = Batches(model, sampling, ending_ids(eos_id, tokenizer), _drawable(model, tokenizer), progress)

    continuations: list[list[int]] = []
    for start in range(0, len(sequences), batch_size):
        rows = range(start, min(start + batch_size, len(sequences)))
        draws = [_random_numbers(seed, numbers[row]) for row in rows] if do_sample else None
        continuations += batches.run([sequences[row] for row in rows], [limits[row] for row in rows], draws)
    return [
        _result(prompt, ids, new, tokenizer, bool(new) and new[-1] in batches.ending)
        for prompt, ids, new in zip(given, sequences, continuations, strict=True)
    ]


def _ids_of(
    prompt: str | Sequence[int],
    number: int,
    model: Decoder,
    tokenizer: Tokenizer | None,
    bos_id: int | None,
    pad_id: int | None,
) -> list[int]:
    bos = tokenizer.bos_id if bos_id is None and tokenizer is not None else bos_id
    pad = tokenizer.pad_id if pad_id is None and tokenizer is not None else pad_id
    if not isinstance(prompt, str):
        ids = _without_padding([int(token) for token in prompt], None if pad == bos else pad)
    elif tokenizer is None:
        raise DataError(f"prompt {number + 1} is text, and there is no tokenizer")
    else:
        ids = [*([] if bos is None else [bos]), *tokenizer.encode(prompt)]
    if not ids:
        raise DataError(f"prompt {number + 1} has no tokens", hint="set generation.bos_id to start from nothing")
    vocab = model.cfg.vocab_size
    outside = next((token for token in ids if not 0 <= token < vocab), None)
    if outside is not None:
        raise DataError(f"prompt {number + 1} holds token id {outside}, outside the model's vocabulary of {vocab}")
    return ids


def _without_padding(ids: list[int], pad: int | None) -> list[int]:
    start, end = 0, len(ids)
    while start < end and ids[start] == pad:
        start += 1
    while end > start and ids[end - 1] == pad:
        end -= 1
    return ids[start:end]


def _limit(prompt_length: int, max_length: int | None, max_new_tokens: int | None) -> int:
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


def _drawable(model: Decoder, tokenizer: Tokenizer | None) -> int:
    """Ids below this may be chosen: a vocabulary padded beyond the tokenizer's has ids that mean nothing."""
    vocab: int = model.cfg.vocab_size
    return vocab if tokenizer is None else min(vocab, tokenizer.vocab_size)


def _random_numbers(seed: int, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _result(
    prompt: str | Sequence[int], ids: list[int], new: list[int], tokenizer: Tokenizer | None, finished: bool
) -> Generation:
    if tokenizer is None:
        return Generation("", "", new, finished, ids)
    # Decoded together and then parted: decoded alone, a continuation would lose the space it begins with.
    before, whole = tokenizer.decode(ids), tokenizer.decode([*ids, *new])
    text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)
    return Generation(prompt if isinstance(prompt, str) else before, text, new, finished, ids)
