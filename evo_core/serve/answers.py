"""The bodies of answers, as the OpenAI API writes them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evo_core.serve.engine import Event, TokenText

_LONGEST_MESSAGE = 1000
"""Characters of an error's message: what a client sent may be in it, and may be long."""

_LEAST_LOG_PROB = -9999.0
"""What stands for -infinity, which JSON has no word for."""

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
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}…"
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
        log_probs: whether the tokens' log-probabilities belong to it.
    """

    chat: bool
    model: str
    prompt_tokens: int
    before: Mapping[int, str]
    log_probs: bool = False
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    pieces: dict[int, list[TokenText]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def take(self, event: Event) -> None:
        """Put an event's text behind its choice's.

        Raises:
            ApiError: the event is an error.
        """
        if event.error is not None:
            raise ApiError(event.status, event.error, kind="server_error")
        self.texts[event.choice] = self.texts.get(event.choice, self.before.get(event.choice, "")) + event.text
        self.tokens[event.choice] = event.tokens
        self.pieces.setdefault(event.choice, []).extend(event.pieces)
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
            log_probs = self._log_probs(self.pieces.get(number, ()))
            choices.append({"index": number, **said, "logprobs": log_probs, "finish_reason": self.reasons.get(number)})
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
            return [self._chunk(event.choice, event.text, event.finish_reason, event.pieces)]
        parts = [self._chunk(event.choice, {"content": event.text}, None)] if event.text else []
        if event.finish_reason:
            parts.append(self._chunk(event.choice, {}, event.finish_reason))
        return parts

    def usage_chunk(self) -> str:
        """The last chunk of a stream that asked for usage."""
        return sse(self._frame(self._chunk_kind) | {"choices": [], "usage": self.usage()})

    def _log_probs(self, pieces: Sequence[TokenText]) -> dict[str, Any] | None:
        if not self.log_probs:
            return None
        values = [max(piece.log_prob, _LEAST_LOG_PROB) for piece in pieces]
        return {
            "tokens": [piece.text for piece in pieces],
            "token_logprobs": values,
            "top_logprobs": [{piece.text: value} for piece, value in zip(pieces, values, strict=True)],
            "text_offset": [piece.offset for piece in pieces],
        }

    def _chunk(self, number: int, said: Any, reason: str | None, pieces: Sequence[TokenText] = ()) -> str:
        choice: dict[str, Any] = {"index": number, "delta" if self.chat else "text": said}
        choice |= {"logprobs": self._log_probs(pieces), "finish_reason": reason}
        return sse(self._frame(self._chunk_kind) | {"choices": [choice]})

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def sse(body: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
