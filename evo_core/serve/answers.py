"""The bodies of answers, as the OpenAI API writes them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evo_core.serve.engine import Event

DONE = "data: [DONE]\n\n"


class ApiError(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        kind: the API's ``type`` of error.
        param: the field that is wrong.
        code: the API's code, where a program would ask for it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code

    def body(self) -> dict[str, Any]:
        """The API's shape of errors."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass
class Answer:
    """One answer in the making.

    Args:
        chat: a conversation's, else a completion's.
        model: the name in it.
        prompt_tokens: of all prompts together.
        before: what each choice's text begins with (echo).
    """

    chat: bool
    model: str
    prompt_tokens: int
    before: Mapping[int, str]
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def take(self, event: Event) -> None:
        """Put an event's text behind its choice's.

        Raises:
            ApiError: the event is an error.
        """
        if event.error is not None:
            stopping = event.error == "the server is stopping"
            raise ApiError(503 if stopping else 500, event.error, kind="server_error")
        self.texts[event.choice] = self.texts.get(event.choice, self.before.get(event.choice, "")) + event.text
        self.tokens[event.choice] = event.tokens
        if event.finish_reason is not None:
            self.reasons[event.choice] = event.finish_reason

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        new = sum(self.tokens.values())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": self.prompt_tokens + new,
        }

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for number in sorted(self.texts):
            text = self.texts[number]
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            choices.append({"index": number, **said, "logprobs": None, "finish_reason": self.reasons.get(number)})
        kind = "chat.completion" if self.chat else "text_completion"
        return self._frame(kind) | {"choices": choices, "usage": self.usage()}

    def first_chunks(self) -> list[str]:
        """What a stream opens with: the roles of a conversation, the prompts of an echo."""
        if self.chat:
            return [self._chunk(n, {"role": "assistant", "content": ""}, None) for n in self.before]
        return [self._chunk(n, text, None) for n, text in self.before.items() if text]

    def chunks(self, event: Event) -> list[str]:
        """An event in a stream; the end of a conversation's choice comes in a chunk of its own."""
        if not self.chat:
            return [self._chunk(event.choice, event.text, event.finish_reason)]
        parts = [self._chunk(event.choice, {"content": event.text}, None)] if event.text else []
        if event.finish_reason:
            parts.append(self._chunk(event.choice, {}, event.finish_reason))
        return parts

    def usage_chunk(self) -> str:
        """The last chunk of a stream that asked for usage."""
        return sse(self._frame(self._chunk_kind) | {"choices": [], "usage": self.usage()})

    def _chunk(self, number: int, said: Any, reason: str | None) -> str:
        choice: dict[str, Any] = {"index": number, "delta" if self.chat else "text": said}
        choice |= {"logprobs": None, "finish_reason": reason}
        return sse(self._frame(self._chunk_kind) | {"choices": [choice]})

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def sse(body: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
