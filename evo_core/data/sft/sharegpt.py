"""ShareGPT records, ``{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}``.

Read as LLaMA-Factory reads them, and written by a chat template as records of the format `chat` are: ``human`` (or an
``observation``, what a tool gave back) and ``gpt`` (or a ``function_call``) take turns, and what the latter say is
trained on. A ``system`` text comes first, as a turn or as a field of the record; a field ``tools`` describes the tools.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from evo_core.data.raw.json_value import parse
from evo_core.data.sft.chat import chat
from evo_core.data.sft.pieces import Format, RecordError, check_fields, text_field
from evo_core.data.tokenize.tokenizers import Tokenizer

_ASKS = {"human": "user", "user": "user", "observation": "tool", "tool": "tool"}
_ANSWERS = dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant", "function_call"), "assistant")
_ROLES = {"system": "system", **_ASKS, **_ANSWERS}


def sharegpt(tokenizer: Tokenizer, template_file: Path | None = None) -> Format:
    """The format for a tokenizer and a template.

    Raises:
        DataError: there is no template, or it is not valid Jinja.
    """
    written = chat(tokenizer, template_file)
    return replace(written, name="sharegpt", pieces=lambda record: written.pieces(as_chat(record)))


def as_chat(record: dict[str, Any]) -> dict[str, Any]:
    """The same conversation as a record of the format `chat`.

    Raises:
        RecordError: it is no conversation, or its turns are not in order.
    """
    check_fields(record)
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RecordError("expected `conversations`: a list of {from, value}")
    messages = [_message(number, turn) for number, turn in enumerate(turns, 1)]
    has_system = messages[0]["role"] == "system"
    _check_order([turn["from"] for turn in turns], start=int(has_system))
    if not has_system and (system := text_field(record, "system", default="")):
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, "tools": record.get("tools")}


def _message(number: int, turn: Any) -> dict[str, Any]:
    speaker = turn.get("from") if isinstance(turn, dict) else None
    if not isinstance(speaker, str):
        raise RecordError(f"turn {number} is not {{from, value}}")
    if speaker not in _ROLES:
        raise RecordError(f"turn {number} is from {speaker!r}; known are {', '.join(_ROLES)}")
    text = turn.get("value")
    if not isinstance(text, str):
        raise RecordError(f"turn {number} has no text in 'value'")
    message: dict[str, Any] = {"role": _ROLES[speaker], "content": text}
    if speaker == "function_call":
        message |= {"content": "", "tool_calls": _calls(number, text)}
    return message | ({"weight": turn["weight"]} if "weight" in turn else {})


def _calls(number: int, text: str) -> list[dict[str, Any]]:
    """The calls of a turn, ``{"name": …, "arguments": {…}}`` or a list of them, as chat templates take them."""
    try:
        calls = parse(text)
    except ValueError:
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
        raise RecordError(f"turn {number} is no function call: expected JSON with name and arguments")
    return [{"type": "function", "function": {key: call[key] for key in ("name", "arguments")}} for call in calls]


def _check_order(speakers: list[str], start: int) -> None:
    for number, speaker in enumerate(speakers[start:], start):
        expected = _ANSWERS if (number - start) % 2 else _ASKS
        if speaker not in expected:
            raise RecordError(f"turn {number + 1} is from {speaker}, where one of {', '.join(expected)} is expected")
    if speakers[-1] not in _ANSWERS:
        raise RecordError(f"the last turn is from {speakers[-1]}: it has no answer")
