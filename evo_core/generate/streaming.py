"""Text that comes while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from evo_core.errors import CheckpointError, DataError
from evo_core.generate.batch import DecodingBatch, Row, is_stretched, random_numbers
from evo_core.generate.continuation import check_model
from evo_core.generate.forward import Forward
from evo_core.generate.prompt_ids import drawable, ending_ids, ids_of, limit_of
from evo_core.generate.sampling import Sampling
from evo_core.model.evaluating import evaluating

if TYPE_CHECKING:
    from evo_core.data.tokenize.tokenizers import Tokenizer
    from evo_core.parallel.mesh import Mesh

_CONTEXT = 16
"""Tokens of the prompt that are decoded with the first of a continuation."""

_BROKEN = "\ufffd"
"""What a decoder writes for the first bytes of a character whose last ones are still to come."""


class TextStream:
    """From token ids, one by one, to the pieces of text that are certain so far.

    A token may be a part of a character, and a word's space belongs to the token before or after it: so tokens are
    decoded together with those just before them, and a piece is handed out when it does not end within a character.

    Args:
        tokenizer: whose ids come.
        prompt_ids: what they follow.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids, self._told = _context(tokenizer, prompt_ids)

    def push(self, token: int) -> str:
        """The text that became certain with one more token; often empty."""
        self._ids.append(token)
        before, now = self._tokenizer.decode(self._ids[: self._told]), self._tokenizer.decode(self._ids)
        if len(now) <= len(before) or now.endswith(_BROKEN):
            return ""
        del self._ids[: self._told]
        self._told = len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        """What is left at the end, bytes that never became a character included."""
        before, now = self._tokenizer.decode(self._ids[: self._told]), self._tokenizer.decode(self._ids)
        return now[len(before) :] if now.startswith(before) else self._tokenizer.decode(self._ids[self._told :])


def _context(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> tuple[list[int], int]:
    """The last tokens of a prompt, and how many of them are whole characters.

    A cut may fall within a character, of which up to three tokens are then left out; and a prompt may end within
    one, which is then told as a whole.
    """
    ids = list(prompt_ids[-_CONTEXT:])
    for told in range(len(ids), max(len(ids) - 4, 0), -1):
        for start in range(4 if len(prompt_ids) > _CONTEXT else 1):
            text = tokenizer.decode(ids[start:told])
            if not text.startswith(_BROKEN) and not text.endswith(_BROKEN):
                return ids[start:], told - start
    return ids, 0 if len(ids) < 4 else len(ids)


def stream(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    eos_id: int | Sequence[int] | None = None,
    bos_id: int | None = None,
    pad_id: int | None = None,
    seed: int = 1024,
    dynamic_ntk: bool | None = None,
    mesh: Mesh | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """Continue one prompt, yielding text as it comes; put together it is `generate`'s text for it.

        for piece in stream(model, tokenizer, "Once upon a time", max_new_tokens=50):
            print(piece, end="", flush=True)

    Only bytes that never become a character may show otherwise than there.

    Args:
        sampling: the settings of `Sampling`; all others as `generate` takes them. There is no beam search, which
            knows a text's first word only after its last.

    Raises:
        ConfigError, DataError: as `generate`, when it is called.
        CheckpointError: the model's scores are not finite, when the text has come so far.
    """
    decoder, chosen = check_model(model), Sampling(**sampling)
    if tokenizer is None:
        raise DataError("a stream of text needs a tokenizer")
    ids = ids_of(prompt, 0, decoder, tokenizer, bos_id, pad_id)
    limit = limit_of(len(ids), max_length, max_new_tokens)
    row = Row(ids[:limit], limit, chosen, random_numbers(seed, 0) if chosen.do_sample else None)
    stretched = is_stretched(decoder.cfg, [row], dynamic_ntk)
    ending = ending_ids(eos_id, decoder, tokenizer)
    batch = DecodingBatch(Forward(decoder, mesh), ending, drawable(decoder, tokenizer), dynamic_ntk=stretched)
    return _pieces(decoder, batch, row, TextStream(tokenizer, row.prompt))


def _pieces(model: nn.Module, batch: DecodingBatch, row: Row, text: TextStream) -> Iterator[str]:
    advance: Callable[[], None] = partial(batch.add, [row])
    while not row.done:
        with evaluating(model):
            advance()
        if row.failed is not None:
            raise CheckpointError(row.failed)
        advance = batch.step
        if piece := text.push(row.new[-1]):
            yield piece
    if piece := text.finish():
        yield piece
