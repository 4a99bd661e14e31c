"""ShareGPT records are chats told otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.data.sft.formats import find_format
from evo_core.data.sft.samples import SftSettings
from evo_core.data.sft.sharegpt import as_chat
from evo_core.data.sft.write import write_sft_dataset, write_sft_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import read_bin

TEMPLATE = """\
{%- for t in tools or [] %}<tool>{{ t.name }}</tool>{% endfor %}
{%- for m in messages %}<{{ m.role }}>{{ m.content }}
{%- for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}
{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


def turns(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": value} for speaker, value in pairs]


TALK = turns(("human", "undo"), ("gpt", "redo"), ("human", "react"), ("gpt", "over"))
CALL = '{"name": "look_up", "arguments": {"word": "view"}}'
WITH_TOOLS = turns(("human", "what is view?"), ("function_call", CALL), ("observation", "a look"), ("gpt", "a look"))


def written(folder: Path, tokenizer: Tokenizer, name: str, *records: Any) -> list[list[int]]:
    (folder / "t.jinja").write_text(TEMPLATE)
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_sft_file([folder / "a.jsonl"], folder / "a.bin", SftSettings(tokenizer.path, name, folder / "t.jinja"))
    return read_bin(folder / "a.bin")


def test_the_same_samples_as_of_chats(tmp_path: Path, tokenizer: Tokenizer) -> None:
    question = {"role": "user", "content": "undo"}
    chat = [question, {"role": "assistant", "content": "redo"}]
    chat += [{"role": "user", "content": "react"}, {"role": "assistant", "content": "over"}]
    system = {"role": "system", "content": "view"}
    ours = written(
        tmp_path,
        tokenizer,
        "sharegpt",
        {"conversations": TALK},
        {"conversations": turns(("system", "view")) + TALK},
        {"conversations": TALK, "system": "view", "id": 7},
        {"conversations": TALK, "system": "", "tools": None},
        {"conversations": turns(("user", "undo"), ("chatgpt", "redo"))},
        {"conversations": [TALK[0], TALK[1] | {"weight": 0}, *TALK[2:]]},
    )
    assert ours == written(
        tmp_path,
        tokenizer,
        "chat",
        {"messages": chat},
        {"messages": [system, *chat]},
        {"messages": [system, *chat]},
        {"messages": chat},
        {"messages": chat[:2]},
        {"messages": [question, chat[1] | {"weight": 0}, *chat[2:]]},
    )


def test_tools(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What calls a function is trained on, what a function gives is read; tools may be JSON in a text."""
    tools = [{"name": "look_up"}]
    records = [{"conversations": WITH_TOOLS, "tools": given} for given in (tools, json.dumps(tools))]
    first, second = written(tmp_path, tokenizer, "sharegpt", *records)
    assert first == second
    text = tokenizer.decode(abs(token) for token in first)
    assert text.startswith("<tool>look_up</tool><user>what is view?")
    assert "<tool>a look" in text
    trained = tokenizer.decode(token for token in first if token >= 0)
    assert trained.split("\n") == ['look_up({"word": "view"})', "a look", ""]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no conversation": ({"messages": []}, "expected `conversations`"),
    "nothing in it": ({"conversations": []}, "expected `conversations`"),
    "a text": ({"conversations": ["a"]}, "turn 1 is not {from, value}"),
    "a chat": ({"conversations": [{"role": "user", "content": "a"}]}, "turn 1 is not {from, value}"),
    "an unknown role": (
        {"conversations": turns(("human", "a"), ("moderator", "b"))},
        "turn 2 is from 'moderator'; known",
    ),
    "no text": ({"conversations": turns(("human", "a"), ("gpt", None))}, "turn 2 has no text"),
    "the answer first": (
        {"conversations": turns(("gpt", "a"), ("human", "b"))},
        "turn 1 is from gpt, where one of human",
    ),
    "two questions": (
        {"conversations": turns(("human", "a"), ("human", "b"))},
        "turn 2 is from human, where one of gpt",
    ),
    "a late system": (
        {"conversations": turns(("human", "a"), ("system", "b"))},
        "turn 2 is from system, where one of gpt",
    ),
    "two systems": ({"conversations": turns(("system", "a"), ("system", "b"))}, "turn 2 is from system"),
    "no answer": ({"conversations": TALK[:3]}, "the last turn is from human"),
    "a system alone": ({"conversations": turns(("system", "a"))}, "the last turn is from system"),
    "no call": ({"conversations": turns(("human", "a"), ("function_call", "b"))}, "turn 2 is no function call"),
    "half a call": (
        {"conversations": turns(("human", "a"), ("function_call", '{"name": "b"}'))},
        "turn 2 is no function",
    ),
    "a system that is no text": ({"conversations": TALK, "system": 3}, "the field 'system' is not text"),
    "a picture": ({"conversations": TALK, "image": "a.png"}, "it comes with the field 'image'"),
    "a weight": ({"conversations": [TALK[0], TALK[1] | {"weight": 0.5}]}, "the weight of message 2 must be 0 or 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_records(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    record, message = WRONG[name]
    with pytest.raises(DataError) as raised:
        written(tmp_path, tokenizer, "sharegpt", {"conversations": TALK}, record)
    assert f"a.jsonl:2: {message}" in str(raised.value)
    settings = SftSettings(tokenizer.path, "sharegpt", tmp_path / "t.jinja", on_error="skip")
    result = write_sft_file([tmp_path / "a.jsonl"], tmp_path / "a.bin", settings)
    assert (result.splits["train"].samples, result.skipped.count) == (1, 1)


def test_the_template_goes_along(tmp_path: Path, tokenizer: Tokenizer) -> None:
    written(tmp_path, tokenizer, "sharegpt", {"conversations": TALK})
    settings = SftSettings(tokenizer.path, "sharegpt", tmp_path / "t.jinja")
    write_sft_dataset([tmp_path / "a.jsonl"], tmp_path / "out", settings, split_ratio=0)
    assert (tmp_path / "out/tokenizer/chat_template.jinja").read_text() == TEMPLATE
    with pytest.raises(DataError, match="there is no chat template beside this tokenizer"):
        find_format("sharegpt", tokenizer)


def test_a_field_that_is_left_alone() -> None:
    assert as_chat({"conversations": TALK, "id": 3}).keys() == {"messages", "tools"}
