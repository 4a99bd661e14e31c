"""A model continues prompts: from texts or token ids to texts and token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from evo_core.errors import ConfigError, DataError
from evo_core.generate.batch import DecodingBatch, Row, is_stretched, random_numbers
from evo_core.generate.beams import BeamSearch
from evo_core.generate.forward import Forward
from evo_core.generate.prompt_ids import drawable, ending_ids, ids_of, limit_of
from evo_core.generate.sampling import Sampling
from evo_core.model import Decoder
from evo_core.model.evaluating import evaluating

if TYPE_CHECKING:
    from evo_core.data.tokenize.tokenizers import Tokenizer
    from evo_core.parallel.mesh import Mesh


@dataclass
class Generation:
    """One prompt, continued.

    prompt: its text.
    text: the continuation alone.
    ids: the tokens of the continuation, the one that ended it included.
    finished: whether an ending token was chosen; else the length limit was reached.
    prompt_ids: the tokens of the prompt as the model read them.
    error: why it ended before its time, where it did; the other prompts are continued all the same.
    """

    prompt: str
    text: str
    ids: list[int]
    finished: bool
    prompt_ids: list[int]
    error: str | None = None


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
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
    length_penalty: float = 1.0,
    eos_id: int | Sequence[int] | None = None,
    bos_id: int | None = None,
    pad_id: int | None = None,
    batch_size: int = 1,
    seed: int = 1024,
    indices: Sequence[int] | None = None,
    dynamic_ntk: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    mesh: Mesh | None = None,
) -> list[Generation]:
    """Continue prompts.

    A prompt's result depends on the seed and its number, not on the prompts beside it: batches hold no padding
    and every prompt draws from its own random numbers (up to rounding, which may differ between batch sizes in
    the last digits).

    Args:
        model: a `Decoder` with its weights.
        tokenizer: needed for text; with token prompts it may be None, and texts are then empty.
        prompts: texts, or token ids as they are (no bos is put before them).
        max_length: tokens of prompt and continuation together, 1 or more; 100 if neither limit is given. A longer
            prompt is cut to it.
        max_new_tokens: tokens of the continuation, in place of max_length.
        do_sample, temperature, top_k, top_p, repetition_penalty, length_penalty: see `Sampling`.
        num_beams: above 1, beam search (see beams.py), where length_penalty weighs whole texts.
        eos_id: id or ids that end a text; None takes those that the weights came with (`Decoder.ending`) and the
            tokenizer's.
        bos_id: put before a text prompt; None takes what the tokenizer begins texts with.
        pad_id: removed from both ends of token prompts (they may have been padded to one length); None takes
            the tokenizer's, if it has one.
        batch_size: prompts at a time.
        seed: of the draws.
        indices: number of each prompt, of which its draws depend; its position in ``prompts`` by default.
        dynamic_ntk: stretch the rotary base beyond the trained length; None as the model's settings say.
        progress: called after every token with (prompts done, tokens generated).
        mesh: the ranks of the model's other stages, where it is a stage (`load_model` took the same); all of them call
            this with the same prompts and settings, and get the same.

    Raises:
        ConfigError: a setting out of range, or a model of another kind.
        DataError: a prompt without tokens, or with an id outside the vocabulary; text without a tokenizer. All
            prompts are looked at before the first is continued.
    """
    decoder = check_model(model)
    sampling = Sampling(do_sample, temperature, top_k, top_p, repetition_penalty, length_penalty)
    for name, number in (("num_beams", num_beams), ("batch_size", batch_size)):
        if number < 1:
            raise ConfigError(f"{number} must be 1 or more", key=f"generation.{name}")
    if isinstance(prompts, str):
        raise DataError("prompts is one text, not a list of them", hint="put it in a list: [prompt]")
    given: list[str | Sequence[int]] = list(prompts)
    sequences = [ids_of(prompt, i, decoder, tokenizer, bos_id, pad_id) for i, prompt in enumerate(given)]
    limits = [limit_of(len(ids), max_length, max_new_tokens) for ids in sequences]
    numbers = range(len(sequences)) if indices is None else indices
    rows = [
        Row(ids[:limit], limit, sampling, random_numbers(seed, number) if do_sample else None)
        for ids, limit, number in zip(sequences, limits, numbers, strict=True)
    ]
    ending, limit = ending_ids(eos_id, decoder, tokenizer), drawable(decoder, tokenizer)
    run = _Run(Forward(decoder, mesh), ending, limit, dynamic_ntk, progress)
    with evaluating(decoder):
        for start in range(0, len(rows), batch_size):
            run.batch(rows[start : start + batch_size], num_beams)
    return [_result(prompt, row, tokenizer) for prompt, row in zip(given, rows, strict=True)]


def check_model(model: nn.Module) -> Decoder:
    """The model itself, if it is one that can generate.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(model, Decoder):
        raise ConfigError(f"{type(model).__name__} keeps no keys and values: only the shipped families generate")
    return model


class _Run:
    """Batch after batch with the same model, counting what was done."""

    def __init__(
        self,
        forward: Forward,
        ending: frozenset[int],
        limit: int,
        dynamic_ntk: bool | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.forward, self.ending, self.drawable = forward, ending, limit
        self.dynamic_ntk = dynamic_ntk
        self.progress = progress or (lambda prompts, tokens: None)
        self.prompts = self.tokens = 0

    def batch(self, rows: Sequence[Row], num_beams: int) -> None:
        live = [row for row in rows if not row.done]
        self._count(len(rows) - len(live), 0)
        if not live:
            return
        dynamic_ntk = is_stretched(self.forward.model.cfg, live, self.dynamic_ntk)
        if num_beams > 1:
            search = BeamSearch(self.forward, self.ending, self.drawable, num_beams, dynamic_ntk=dynamic_ntk)
            search.run(live, self._count)
            return
        batch = DecodingBatch(self.forward, self.ending, self.drawable, dynamic_ntk=dynamic_ntk)
        batch.add(live)
        going = len(batch.rows)
        self._count(len(live) - going, len(live))
        while batch.rows:
            batch.step()
            self._count(going - len(batch.rows), going)
            going = len(batch.rows)

    def _count(self, prompts: int, tokens: int) -> None:
        self.prompts, self.tokens = self.prompts + prompts, self.tokens + tokens
        if prompts or tokens:
            self.progress(self.prompts, self.tokens)


def _result(prompt: str | Sequence[int], row: Row, tokenizer: Tokenizer | None) -> Generation:
    if tokenizer is None:
        return Generation("", "", row.new, row.finished, row.prompt, row.failed)
    # Decoded together and then parted: decoded alone, a continuation would lose the space it begins with.
    try:
        before, whole = tokenizer.decode(row.prompt), tokenizer.decode([*row.prompt, *row.new])
        text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(row.new)
    except Exception as error:  # whatever a tokenizer raises: it is this text's alone
        before, text, row.failed = "", "", row.failed or f"its tokens cannot be written as text ({error})"
    shown = prompt if isinstance(prompt, str) else before
    return Generation(shown, text, row.new, row.finished, row.prompt, row.failed)
