"""Alpaca records, ``{"instruction": …, "input": …, "output": …}``, as InternEvo's tool writes them::

    bos  −("<|User|>:" instruction ["\\n" input] eoh newline)  −("<|Bot|>:")  output eoa newline  eos

Each text is tokenized by itself and a minus marks ids that are read and not trained on. ``eoh`` and ``eoa`` end the
human's and the assistant's turn; which ids these are depends on the vocabulary (`turn_ids`).

Two more fields are read as LLaMA-Factory reads them: ``system``, a text before all turns (``<|System|>:``, as
InternLM's chat models have it), and ``history``, a list of [question, answer] before this one, whose answers are
trained on too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evo_core.data.sft.pieces import Format, Piece, RecordError, check_fields, text_field
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError

_PUBLISHED = {103168: (103167, 103166, 13, "InternLM"), 92544: (92542, 92542, 13, "InternLM2")}
"""Vocabulary size to (eoh, eoa, newline, whose): what the published models were trained with. InternLM's vocabulary
also holds pieces spelled ``<eoh>`` and ``<eoa>``, under other ids, which its tool does not use."""

_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
_NEWLINES = ("<0x0A>", "Ċ", "\n")


@dataclass(frozen=True)
class TurnIds:
    """The ids between the turns.

    Attributes:
        eoh, eoa: end the human's and the assistant's turn.
        newline: follows them; empty where the vocabulary has no piece for it.
        why: where they come from.
    """

    eoh: int
    eoa: int
    newline: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        newline = " ".join(map(str, self.newline)) or "none"
        return f"end of prompt {self.eoh}, end of answer {self.eoa}, newline {newline} ({self.why})"


def turn_ids(tokenizer: Tokenizer) -> TurnIds:
    """The ids that end turns in a vocabulary.

    The published ids for the vocabularies of InternLM (103168) and InternLM2 (92544). For others the pieces ``<eoh>``
    and ``<eoa>`` if it has both; else the first of ``<|im_end|> <|eot_id|> <end_of_turn> <|end|>`` for both; else eos
    for both. The newline is the piece ``<0x0A>``, ``Ċ`` or ``\\n``, else left out.

    Raises:
        DataError: it has none of these.
    """
    if published := _PUBLISHED.get(tokenizer.vocab_size):
        eoh, eoa, newline, whose = published
        return TurnIds(eoh, eoa, (newline,), f"as published for {whose}")
    newlines = [token for name in _NEWLINES if (token := tokenizer.token_id(name)) is not None][:1]
    eoh_id, eoa_id = tokenizer.token_id("<eoh>"), tokenizer.token_id("<eoa>")
    if eoh_id is not None and eoa_id is not None:
        return TurnIds(eoh_id, eoa_id, tuple(newlines), "its pieces <eoh> and <eoa>")
    for name in _ENDS_OF_TURN:
        if (token := tokenizer.token_id(name)) is not None:
            return TurnIds(token, token, tuple(newlines), f"its piece {name}")
    if tokenizer.eos_id is None:
        raise DataError(
            "this tokenizer has no token that could end a turn: no <eoh> and <eoa>, no <|im_end|>, no eos",
            file=tokenizer.path,
            hint="use --format chat or a format of your own",
        )
    return TurnIds(tokenizer.eos_id, tokenizer.eos_id, tuple(newlines), "eos, as the vocabulary has no turn tokens")


def alpaca(tokenizer: Tokenizer) -> Format:
    """The format for a tokenizer."""
    turns = turn_ids(tokenizer)

    def turn(question: str, answer: str) -> list[Piece]:
        return [
            (f"<|User|>:{question}", False),
            ([turns.eoh, *turns.newline], False),
            ("<|Bot|>:", False),
            (answer, True),
            ([turns.eoa, *turns.newline], True),
        ]

    def pieces(record: dict[str, Any]) -> list[Piece]:
        check_fields(record)
        instruction, output = text_field(record, "instruction"), text_field(record, "output")
        context = text_field(record, "input", default="")
        found: list[Piece] = []
        if system := text_field(record, "system", default=""):
            found += [(f"<|System|>:{system}", False), (turns.newline, False)]
        for question, answer in _history(record):
            found += turn(question, answer)
        return found + turn(f"{instruction}\n{context}" if context else instruction, output)

    return Format("alpaca", pieces, end_of_cut=True, note=str(turns))


def _history(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The turns before this one."""
    history = record.get("history")
    if history is None:
        return []
    if not isinstance(history, list):
        raise RecordError("the field 'history' is not a list of [question, answer]")
    for number, entry in enumerate(history, 1):
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not all(isinstance(text, str) for text in entry):
            raise RecordError(f"entry {number} of 'history' is not a pair of texts [question, answer]")
    return [(question, answer) for question, answer in history]
