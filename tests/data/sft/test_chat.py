"""Chat records through chat templates, against what transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from evo_core.data.sft.chat import ChatTemplate, TemplateSource, chat, special_names
from evo_core.data.sft.encode import SampleEncoder
from evo_core.data.sft.pieces import RecordError
from evo_core.data.sft.samples import SftSettings
from evo_core.data.sft.write import write_sft_dataset
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.errors import DataError
from tests.data.corpora import read_bin, texts

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In the manner of Llama 3: bos, headers, trimmed contents, a system prompt that goes first.
HEADERS = """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- bos_token + '<|im_start|>system<|im_end|>' + system }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '<|im_end|>\\n\\n' + message.content | trim + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant<|im_end|>\\n\\n' }}
{%- endif %}
"""
MARKED = """\
{%- for message in messages %}
{%- if loop.index0 == 3 %}{% continue %}{% endif %}
{%- if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}
{{- message.content }}<|im_end|>
{%- endgeneration %}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
"""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "marked": MARKED}

MESSAGES = [
    {"role": "system", "content": "  The quick brown fox. "},
    {"role": "user", "content": "undo and redo 幸福?"},
    {"role": "assistant", "content": " 感恩生活中的每一个细节 𝒳\nover and view"},
    {"role": "user", "content": "<b>&'\"</b>"},
    {"role": "assistant", "content": "react"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer as Hugging Face keeps it."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts(), trainer)
    folder = tmp_path_factory.mktemp("bpe")
    model.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


Theirs = Callable[[str, list[dict[str, Any]]], tuple[str, list[int], list[int]]]


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Theirs:
    """Text, ids and mask of the assistant's tokens as transformers has them."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )

    def apply(template: str, messages: list[dict[str, Any]]) -> tuple[str, list[int], list[int]]:
        tokenizer.chat_template = template
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return text, found["input_ids"], found["assistant_masks"]

    return apply


def template_of(text: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(TemplateSource(text, Path("template.jinja")), special_names(tokenizer))


def ours(folder: Path, template: str, messages: list[dict[str, Any]], tmp_path: Path) -> list[int]:
    (tmp_path / "template.jinja").write_text(template)
    tokenizer = load_tokenizer(folder)
    encoder = SampleEncoder(tokenizer, chat(tokenizer, tmp_path / "template.jinja"), max_length=2048)
    return encoder.encode({"messages": messages}).ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_ids_are_those_of_transformers(name: str, folder: Path, theirs: Theirs, tmp_path: Path) -> None:
    text, ids, _ = theirs(TEMPLATES[name], MESSAGES)
    assert template_of(TEMPLATES[name], load_tokenizer(folder)).render(MESSAGES) == text
    assert [abs(i) for i in ours(folder, TEMPLATES[name], MESSAGES, tmp_path)] == ids


def test_marks_are_those_of_transformers(folder: Path, theirs: Theirs, tmp_path: Path) -> None:
    _, ids, mask = theirs(MARKED, MESSAGES)
    assert 0 < sum(mask) < len(mask)
    assert ours(folder, MARKED, MESSAGES, tmp_path) == [i if m else -i for i, m in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("name", ["chatml", "headers"])
def test_assistant_turns_found_by_their_prefixes(name: str, folder: Path, tmp_path: Path) -> None:
    ids = ours(folder, TEMPLATES[name], MESSAGES, tmp_path)
    tokenizer = load_tokenizer(folder)
    runs = [list(run) for trained, run in groupby(ids, lambda token: token >= 0) if trained]
    trained = [decoders.ByteLevel().decode([tokenizer.piece(token) for token in run]) for run in runs]
    end = "<|im_end|>\n" if name == "chatml" else "<|im_end|>"
    contents = [message["content"] for message in MESSAGES if message["role"] == "assistant"]
    assert trained == [(c if name == "chatml" else c.strip()) + end for c in contents]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_message_of_weight_zero(name: str, folder: Path, tmp_path: Path) -> None:
    """It is read and not trained on; the others are as without it, and a template does not see the weight."""
    messages = [*MESSAGES, {"role": "user", "content": "undo"}, {"role": "assistant", "content": "redo"}]
    everything = ours(folder, TEMPLATES[name], messages, tmp_path)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    for left_out in answers:
        weighed = [message | ({"weight": 0} if n == left_out else {}) for n, message in enumerate(messages)]
        ids = ours(folder, TEMPLATES[name], weighed, tmp_path)
        assert [abs(i) for i in ids] == [abs(i) for i in everything]
        runs = [list(run) for trained, run in groupby(everything, lambda token: token >= 0) if trained]
        kept = [list(run) for trained, run in groupby(ids, lambda token: token >= 0) if trained]
        # MARKED passes over the fourth message, and with it over nothing that is trained on.
        assert kept == [run for n, run in zip(answers, runs, strict=True) if n != left_out]
    whole = [message | {"weight": 1 if message["role"] == "assistant" else 0} for message in messages]
    assert ours(folder, TEMPLATES[name], whole, tmp_path) == everything
    none = [message | {"weight": 0} for message in messages]
    with pytest.raises(RecordError, match="nothing of it is trained on"):
        ours(folder, TEMPLATES[name], none, tmp_path)


def test_a_record_that_fails_a_template_does_not_spoil_the_others(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (tmp_path / "template.jinja").write_text(
        CHATML + "{% if messages[0].deep %}{{ messages[0].deep|tojson }}{% endif %}"
    )
    encoder = SampleEncoder(tokenizer, chat(tokenizer, tmp_path / "template.jinja"), max_length=2048)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    bad: list[Any] = [
        {"role": "user", "content": "half \ud83d"},
        {"role": "user", "content": [{"type": "text", "text": datetime(2024, 1, 1)}]},
        {"role": "user", "content": "a", "deep": datetime(2024, 1, 1)},
        {"role": "user", "content": "a", "deep": deep},
        {"role": "user", "content": b"bytes"},
        {"role": "user", "content": Decimal("1.5")},
    ]
    good = {"messages": MESSAGES}
    found = encoder.encode_batch([good, *({"messages": [first, *MESSAGES]} for first in bad), good])
    assert [isinstance(sample, RecordError) for sample in found] == [False, *[True] * len(bad), False]
    dated = {"messages": [message | {"at": datetime(2024, 1, 1)} for message in MESSAGES]}
    assert encoder.encode(dated) == found[0]


def test_a_template_that_changes_what_it_wrote(folder: Path) -> None:
    only_last = "{% for m in messages %}{{ m.role }}{{ m.content if loop.last else '' }};{% endfor %}"
    with pytest.raises(RecordError, match=r"message 3 changes the text before it .* mark it in the template"):
        template_of(only_last, load_tokenizer(folder)).pieces({"messages": MESSAGES[:1] + MESSAGES[3:] * 2})


WRONG: dict[str, tuple[Any, str]] = {
    "no messages": ({"text": "a"}, "expected `messages`"),
    "none in it": ({"messages": []}, "expected `messages`"),
    "no role": ({"messages": [{"content": "a"}]}, "message 1 is not an object with a role"),
    "no content": ({"messages": [{"role": "user"}]}, "message 1 has no content"),
    "no answer": ({"messages": MESSAGES[:2]}, "no message of the assistant"),
    "a weight": (
        {"messages": [{"role": "assistant", "content": "a", "weight": 2}]},
        "weight of message 1 must be 0 or",
    ),
    "a weight of the user's": (
        {"messages": [{"role": "user", "content": "a", "weight": 1}, *MESSAGES]},
        "message 1 has",
    ),
    "a call that is not written": (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look_up"}}]}]},
        "message 1 calls 'look_up', and the chat template writes no calls",
    ),
    "a call in the older form": (
        {"messages": [{"role": "assistant", "content": "", "function_call": {"name": "look_up"}}]},
        "message 1 calls 'look_up'",
    ),
    "a weight by another name": ({"messages": [MESSAGES[4] | {"train": False}]}, "message 1 says train: false; write"),
    "a picture": ({"messages": MESSAGES, "images": ["a.png"]}, "comes with the field 'images'"),
    "tools that are none": ({"messages": MESSAGES, "tools": "{"}, "the field 'tools' is neither a list nor JSON"),
    "our marks": ({"messages": [{"role": "assistant", "content": "\ufdd0"}]}, "message 1 holds U\\+FDD0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_records(name: str, folder: Path) -> None:
    record, message = WRONG[name]
    with pytest.raises(RecordError, match=message):
        template_of(CHATML, load_tokenizer(folder)).pieces(record)


def test_templates_run_in_a_sandbox_and_may_refuse(folder: Path) -> None:
    for template, message in {
        "{{ raise_exception('roles must alternate') }}": "roles must alternate",
        "{{ messages.append(1) }}": "the chat template",
        "{{ ''.__class__.__mro__ }}": "the chat template",
        "{{ strftime_now('%Y') }}": "'strftime_now' is undefined",
        "{{ messages[0].content + 1 }}": "the chat template fails on it",
    }.items():
        with pytest.raises(RecordError, match=message):
            template_of(template, load_tokenizer(folder)).pieces({"messages": MESSAGES})
    with pytest.raises(DataError, match=r"template\.jinja:2: not a Jinja template"):
        template_of("a\n{% if %}", load_tokenizer(folder))


def test_the_template_beside_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="no chat template beside this tokenizer"):
        chat(load_tokenizer(tmp_path))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for entry in (CHATML, [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": entry}))
        assert "tokenizer_config.json" in chat(load_tokenizer(tmp_path)).note
    (tmp_path / "chat_template.jinja").write_text(HEADERS)
    assert "chat_template.jinja" in chat(load_tokenizer(tmp_path)).note

    records = tmp_path / "chat.jsonl"
    records.write_text(json.dumps({"messages": MESSAGES}) + "\n")
    write_sft_dataset([records], tmp_path / "out", SftSettings(tmp_path, "chat"), split_ratio=0)
    assert read_bin(tmp_path / "out/train/en/dataset.bin") == [ours(folder, HEADERS, MESSAGES, tmp_path)]
    assert (tmp_path / "out/tokenizer/chat_template.jinja").read_text() == HEADERS


def test_a_sentencepiece_model_with_a_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The names that a configuration gives to pieces stand for their ids, and control pieces are found in a text."""
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    added = {"300": {"content": "<|im_start|>"}, "301": {"content": "<|im_end|>"}}
    config = {"chat_template": "{{ bos_token }}" + CHATML, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    model = load_tokenizer(tmp_path)
    ids = SampleEncoder(model, chat(model), max_length=2048).encode({"messages": MESSAGES}).ids
    assert ids[0] == -model.bos_id  # type: ignore[operator]
    assert [abs(i) for i in ids].count(300) == 5
    assert ids.count(301) == 2 and ids.count(-301) == 3
    runs = [list(run) for trained, run in groupby(ids, lambda token: token >= 0) if trained]
    assert [run.count(301) for run in runs] == [1, 1]
    answers = [model.decode(token for token in run if token != 301).strip() for run in runs]
    assert answers == [message["content"].strip() for message in MESSAGES if message["role"] == "assistant"]
