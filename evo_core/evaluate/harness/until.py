"""Generation that ends at a stop text, as lm-eval's `generate_until` asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import CheckpointError, ConfigError
from evo_core.generate.batch import DecodingBatch, Row, is_stretched, random_numbers
from evo_core.generate.continuation import check_model
from evo_core.generate.forward import Forward
from evo_core.generate.prompt_ids import drawable, ending_ids
from evo_core.generate.sampling import Sampling
from evo_core.model.evaluating import evaluating

if TYPE_CHECKING:
    from evo_core.parallel.mesh import Mesh

MAX_NEW_TOKENS = 256
"""lm-eval's own default of ``max_gen_toks``."""

_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"}
_SEED = 1234


def continue_until(
    model: nn.Module,
    tokenizer: Tokenizer,
    contexts: Sequence[Sequence[int]],
    settings: Sequence[Mapping[str, Any]],
    *,
    numbers: Sequence[int],
    max_length: int,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
    mesh: Mesh | None = None,
) -> list[str]:
    """What the model writes after each context, without the stop text.

    Args:
        contexts: token ids; of one too long the beginning is left out.
        settings: a task's ``generation_kwargs`` for each: ``until`` (a text or several), ``max_gen_toks``, and
            the settings of sampling, which is off unless ``do_sample`` is true.
        numbers: of each request among all, of which its random draws depend.
        max_length: tokens of context and continuation together.
        mesh: the ranks of the model's other stages, where it is a stage; all of them call this alike.

    Raises:
        ConfigError: an unknown setting; a model that cannot generate.
        CheckpointError: the model's scores are not finite: no text can be compared.
    """
    decoder = check_model(model)
    rows = [_row(*one, max_length) for one in zip(contexts, settings, numbers, strict=True)]
    texts = [_Text(row, _stops(one), tokenizer) for row, one in zip(rows, settings, strict=True)]
    forward, limit = Forward(decoder, mesh), drawable(decoder, tokenizer)
    ending = ending_ids(None, decoder, tokenizer)
    # Contexts of like length together, so that a batch ends at about one time.
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].prompt), i))
    done = 0
    with evaluating(decoder):
        for start in range(0, len(order), batch_size):
            members = [texts[i] for i in order[start : start + batch_size]]
            together = [text.row for text in members]
            batch = DecodingBatch(forward, ending, limit, dynamic_ntk=is_stretched(decoder.cfg, together))
            batch.add(together)
            while batch.rows:
                batch.remove([text.row for text in members if text.row in batch.rows and text.is_stopped()])
                if batch.rows:
                    batch.step()
            done += len(members)
            if on_progress is not None:
                on_progress(done, len(rows))
    failed = next((row.failed for row in rows if row.failed is not None), None)
    if failed is not None:
        raise CheckpointError(failed)
    return [text.until_stop() for text in texts]


class _Text:
    """The text of a row so far.

    Prompt and continuation are decoded together and then parted: decoded alone, a continuation would lose the space
    it begins with.
    """

    def __init__(self, row: Row, stops: Sequence[str], tokenizer: Tokenizer) -> None:
        self.row, self._stops, self._tokenizer = row, stops, tokenizer
        self._before = tokenizer.decode(row.prompt)

    def is_stopped(self) -> bool:
        """Whether a stop text is in it."""
        text = self._now()
        return any(stop in text for stop in self._stops)

    def until_stop(self) -> str:
        """What is before the first stop text."""
        text = self._now()
        return text[: min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=len(text))]

    def _now(self) -> str:
        whole = self._tokenizer.decode([*self.row.prompt, *self.row.new])
        if whole.startswith(self._before):
            return whole[len(self._before) :]
        return self._tokenizer.decode(self.row.new)


def _row(context: Sequence[int], settings: Mapping[str, Any], number: int, max_length: int) -> Row:
    if unknown := sorted(set(settings) - _KNOWN):
        hint = f"there are {', '.join(sorted(_KNOWN))}"
        raise ConfigError(f"unknown setting {unknown[0]!r}", key="generation_kwargs", hint=hint)
    new = int(settings.get("max_gen_toks", MAX_NEW_TOKENS))
    if not 0 < new < max_length:
        message = f"max_gen_toks {new} leaves no room for a context in {max_length} tokens"
        raise ConfigError(message, key="generation_kwargs")
    temperature = float(settings.get("temperature", 1.0))
    sampled = bool(settings.get("do_sample", False)) and temperature > 0
    sampling = Sampling(
        do_sample=sampled,
        temperature=temperature if sampled else 1.0,
        top_k=int(settings.get("top_k", 0)),
        top_p=float(settings.get("top_p", 1.0)),
        repetition_penalty=float(settings.get("repetition_penalty", 1.0)),
    )
    prompt = list(context)[-(max_length - new) :]
    return Row(prompt, len(prompt) + new, sampling, random_numbers(_SEED, number) if sampled else None)


def _stops(settings: Mapping[str, Any]) -> list[str]:
    until = settings.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]
