"""From a conversation to the ids a model continues."""

from __future__ import annotations

from collections.abc import Sequence

from evo_core.data.sft.chat import ChatTemplate, find_template, special_names
from evo_core.data.sft.pieces import RecordError
from evo_core.data.tokenize.tokenizers import Tokenizer
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
        self._tokenizer = tokenizer
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
            return self._without_template(messages)
        plain = [message.model_dump(exclude_none=True) for message in messages]
        try:
            text = self._template.render(plain, generation_prompt=True)
        except RecordError as error:
            raise DataError(str(error), key="messages") from None
        return [token for token, _, _ in self._tokenizer.encode_template(text)]

    def _without_template(self, messages: Sequence[Message]) -> list[int]:
        """InternLM's form: what a message says is text, and an answer's end is put there by its id."""
        bos, end = self._tokenizer.bos_id, self._tokenizer.token_id(_END_OF_ANSWER)
        ids, text = [] if bos is None else [bos], ""
        for message in messages:
            text += f"{_ROLES[message.role]}:{message.content}"
            if message.role == "assistant" and end is not None:
                ids += [*self._tokenizer.encode(text), end]
                text = ""
            elif message.role == "assistant":
                text += _END_OF_ANSWER
            text += "\n"
        return ids + self._tokenizer.encode(f"{text}{_ROLES['assistant']}:")
