"""Chat records, ``{"messages": [{"role": …, "content": …}, …]}``, written by a Jinja chat template.

A template is what Hugging Face tokenizers carry: ``chat_template.jinja`` or the field ``chat_template`` of
``tokenizer_config.json``. The text is the one that ``apply_chat_template`` of transformers renders. Trained on are the
assistant's turns:

- what stands between ``{% generation %}`` and ``{% endgeneration %}``, where the template has these marks;
- else, for each assistant message, what it adds to the text of the messages before it with the generation prompt
  behind them: the answer and what ends it. Where a message changes the text before it, this cannot be said, and
  the record is refused.

A message with ``"weight": 0`` is read and not trained on, as in OpenAI's fine-tuning data.

Templates run in Jinja's sandbox and see only the record. There is no ``strftime_now``: samples do not depend on the
day they were made, and templates that ask for it fall back to a date of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from evo_core.data.raw.json_value import parse
from evo_core.data.sft.pieces import Format, Piece, RecordError, check_fields
from evo_core.data.tokenize.tokenizer_settings import CONFIG, read_json_object, read_settings
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError

if TYPE_CHECKING:
    import jinja2

# Not characters: Unicode keeps both for use inside a program.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OTHER_WEIGHTS = ("train", "training", "loss")  # what other tools call it


@dataclass(frozen=True)
class TemplateSource:
    """A template's text and the file it was found in."""

    text: str
    file: Path


def find_template(tokenizer: Tokenizer, file: Path | None = None) -> TemplateSource:
    """The template in a file, or else the one beside the tokenizer.

    Raises:
        DataError: there is none.
    """
    if file is not None:
        if not file.is_file():
            raise DataError("there is no such chat template", file=file)
        return TemplateSource(_read(file), file)
    folder = tokenizer.path.parent
    if (beside := folder / "chat_template.jinja").is_file():
        return TemplateSource(_read(beside), beside)
    template = tokenizer_config(tokenizer).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = (entry for entry in template if isinstance(entry, dict))
        template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise DataError(
            "there is no chat template beside this tokenizer (chat_template.jinja, or chat_template in "
            "tokenizer_config.json)",
            file=tokenizer.path,
            hint="give one with --chat-template FILE",
        )
    return TemplateSource(template, folder / "tokenizer_config.json")


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``tokenizer_config.json`` beside a tokenizer; empty without one."""
    return read_json_object(tokenizer.path.with_name(CONFIG))


def chat(tokenizer: Tokenizer, template_file: Path | None = None) -> Format:
    """The format for a tokenizer and a template; begin and end ids are the template's business.

    Raises:
        DataError: there is no template, or it is not valid Jinja.
    """
    source = find_template(tokenizer, template_file)
    template = ChatTemplate(source, special_names(tokenizer))
    note = f"chat template: {source.file}" + ("" if template.marked else "; assistant turns found by their prefixes")
    return Format("chat", template.pieces, as_one_text=True, bos=False, eos=False, note=note)


def special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """``bos_token`` and the like, as a template sees them."""
    settings = read_settings(tokenizer.path.parent)
    names = settings.names
    for key, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if token is not None and not settings.denies(key):
            names.setdefault(key, tokenizer.piece(token))
    return names


class ChatTemplate:
    """A compiled template.

    Attributes:
        marked: whether it marks what the assistant generates.

    Raises:
        DataError: it is not valid Jinja.
    """

    def __init__(self, source: TemplateSource, names: dict[str, str]) -> None:
        environment = _environment()
        import jinja2

        self.marked = bool(_MARKS.search(source.text))
        self._names = names
        try:
            self._template = environment.from_string(source.text)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"not a Jinja template ({error.message})", file=source.file, line=error.lineno) from None

    def render(self, messages: list[dict[str, Any]], *, generation_prompt: bool = False, **variables: Any) -> str:
        """The text of messages.

        Raises:
            RecordError: the template refuses them.
        """
        return _without_marks(self._render(messages, generation_prompt, variables))

    def pieces(self, record: dict[str, Any]) -> Sequence[Piece]:
        """The record's text, cut where the assistant begins and ends.

        Raises:
            RecordError: it has no messages, none of the assistant's, or the template refuses it.
        """
        messages, trained = _messages(record)
        variables = {"tools": _tools(record.get("tools")), "documents": record.get("documents")}
        if self.marked:
            pieces = self._marked_pieces(messages, trained, variables)
        else:
            pieces = self._pieces_by_prefix(messages, trained, variables)
        _check_calls(messages, "".join(text for text, _ in pieces))
        return pieces

    def _marked_pieces(
        self, messages: list[dict[str, Any]], trained: list[bool], variables: dict[str, Any]
    ) -> list[tuple[str, bool]]:
        outside, *marked = self._render(messages, False, variables).split(_BEGIN)
        keep = self._kept_marks(messages, trained, len(marked), variables)
        pieces = [(outside, False)]
        for part, kept in zip(marked, keep, strict=True):
            inside, _, outside = part.partition(_END)
            pieces += [(inside, kept), (outside, False)]
        return pieces

    def _kept_marks(
        self, messages: list[dict[str, Any]], trained: list[bool], marks: int, variables: dict[str, Any]
    ) -> list[bool]:
        """Whether each mark is of a message that is trained on."""
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if all(trained[number] for number in answers):
            return [True] * marks
        keep: list[bool] = []
        for number in answers:  # up to it, the marks are its own and those of the answers before it
            count = self._render(messages[: number + 1], False, variables).count(_BEGIN)
            keep += [trained[number]] * (count - len(keep))
        if len(keep) != marks:
            raise RecordError("which of the template's marks belong to the message of weight 0 cannot be told")
        return keep

    def _pieces_by_prefix(
        self, messages: list[dict[str, Any]], trained: list[bool], variables: dict[str, Any]
    ) -> list[tuple[str, bool]]:
        text = self.render(messages, **variables)
        pieces: list[tuple[str, bool]] = []
        at = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], generation_prompt=True, **variables)
            after = self.render(messages[: number + 1], **variables)
            for prefix, whole in ((before, after), (after, text)):
                if not whole.startswith(prefix):
                    _refuse_prefix(number + 1, prefix, whole)
            pieces += [(text[at : len(before)], False), (text[len(before) : len(after)], trained[number])]
            at = len(after)
        return [*pieces, (text[at:], False)]

    def _render(self, messages: list[dict[str, Any]], generation_prompt: bool, variables: dict[str, Any]) -> str:
        import jinja2

        known = {"tools": None, "documents": None, **self._names, **variables}
        try:
            return self._template.render(messages=messages, add_generation_prompt=generation_prompt, **known)
        except jinja2.TemplateError as error:
            raise RecordError(f"the chat template refuses it: {error.message}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RecordError(f"the chat template fails on it: {error}") from None


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError:
        raise DataError("a chat template must be UTF-8 text", file=file) from None


def _messages(record: dict[str, Any]) -> tuple[list[dict[str, Any]], list[bool]]:
    """The messages as a template sees them, and whether each is trained on."""
    check_fields(record)
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RecordError("expected `messages`: a list of {role, content}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RecordError(f"message {number} is not an object with a role")
        content = message.get("content")
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            raise RecordError(f"message {number} has no content")
        if any(_BEGIN in text or _END in text for text in _texts(message)):
            raise RecordError(f"message {number} holds U+FDD0 or U+FDD1, which are not characters")
    if not any(message["role"] == "assistant" for message in messages):
        raise RecordError("no message of the assistant: there is nothing to train on")
    trained = [_is_trained(number, message) for number, message in enumerate(messages, 1)]
    return [{key: message[key] for key in message if key != "weight"} for message in messages], trained


def _is_trained(number: int, message: dict[str, Any]) -> bool:
    weight, is_answer = message.get("weight"), message["role"] == "assistant"
    if key := next((key for key in _OTHER_WEIGHTS if message.get(key) is False), None):
        raise RecordError(f"message {number} says {key}: false; write weight: 0 to leave it out of what is trained on")
    if weight is None:
        return is_answer
    if weight not in (0, 1):
        raise RecordError(f"the weight of message {number} must be 0 or 1, not {weight!r}")
    if weight and not is_answer:
        raise RecordError(f"message {number} has weight 1: only the assistant's messages can be trained on")
    return bool(weight)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a record's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _tools(tools: Any) -> Any:
    """Descriptions of tools, of which files without nested fields hold the JSON."""
    if not isinstance(tools, str):
        return tools
    try:
        return parse(tools) if tools.strip() else None
    except ValueError:
        raise RecordError("the field 'tools' is neither a list nor JSON") from None


def _check_calls(messages: list[dict[str, Any]], text: str) -> None:
    """Many templates know of no tools, and write an empty answer in place of a call."""
    for number, message in enumerate(messages, 1):
        calls = message.get("tool_calls")
        for call in (*(calls if isinstance(calls, list) else ()), message.get("function_call")):
            function = call.get("function", call) if isinstance(call, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            if isinstance(name, str) and name not in text:
                raise RecordError(f"message {number} calls {name!r}, and the chat template writes no calls of tools")


def _without_marks(text: str) -> str:
    return text.replace(_BEGIN, "").replace(_END, "")


def _refuse_prefix(number: int, prefix: str, whole: str) -> NoReturn:
    at = next((i for i, (a, b) in enumerate(zip(prefix, whole, strict=False)) if a != b), min(len(prefix), len(whole)))
    raise RecordError(
        f"message {number} changes the text before it ({prefix[at : at + 30]!r} becomes {whole[at : at + 30]!r}), so "
        "its own part cannot be told: mark it in the template with {% generation %}…{% endgeneration %}"
    )


def _environment() -> jinja2.Environment:
    """Jinja as transformers sets it up, with the marks for generated text."""
    try:
        import jinja2
    except ImportError:
        raise DataError("chat templates need the package jinja2", hint="pip install jinja2") from None
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock, Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return f"{_BEGIN}{caller()}{_END}"

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson  # the built-in one escapes HTML
    environment.globals["raise_exception"] = raise_exception
    return environment
