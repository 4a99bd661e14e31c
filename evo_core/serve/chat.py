"""From a conversation to the ids a model continues."""

from __future__ import annotations

from collections.abc import Sequence

from evo_core.data.sft.chat import ChatTemplate, find_template, special_names
from evo_core.data.sft.pieces import RecordError
from evo_core.data.sft.special import SpecialText
from evo_core.data.tokenizers import Tokenizer
from evo_core.errors import DataError
from evo_core.serve.requests import Message

_ROLES = {"system": "<|System|>", "developer": "<|System|>", "user": "<|User|>", "assistant": "<|Bot|>"}
_END_OF_ANSWER = "<eoa>"


class Chat:
    """Writes conversations as the model knows them.

    By the chat template beside the tokenizer (``chat_template.jinja`` or in ``tokenizer_config.json``); without one in
    the form of InternLM's first chat models::

        <|User|>:question
        <|Bot|>:answer<eoa>
        <|User|>:question
        <|Bot|>:

    Attributes:
        template: where the template is from; None for InternLM's form.
        stops: texts that end an answer.
        ending: ids that end an answer, besides the tokenizer's own.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._special = tokenizer, SpecialText(tokenizer)
        self.template: str | None = None
        self.stops: tuple[str, ...] = ()
        self.ending: frozenset[int] = frozenset()
        try:
            source = find_template(tokenizer)
        except DataError:
            self.stops = (_END_OF_ANSWER, "<|User|>:")
            end = tokenizer.token_id(_END_OF_ANSWER)
            self.ending = frozenset() if end is None else frozenset([end])
        else:
            self._template = ChatTemplate(source, special_names(tokenizer))
            self.template = str(source.file)

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation and of the words that begin an answer.

        Raises:
            DataError: the template refuses the conversation.
        """
        if self.template is None:
            parts = [
                f"{_ROLES[m.role]}:{m.content}{_END_OF_ANSWER if m.role == 'assistant' else ''}\n" for m in messages
            ]
            text, begin = "".join(parts) + _ROLES["assistant"] + ":", self._tokenizer.bos_id
        else:
            plain = [message.model_dump(exclude_none=True) for message in messages]
            try:
                text = self._template.render(plain, generation_prompt=True)
            except RecordError as error:
                raise DataError(str(error), key="messages") from None
            begin = None  # the template writes it
        ids = [token for token, _, _ in self._special.encode(text)]
        return ids if begin is None else [begin, *ids]
