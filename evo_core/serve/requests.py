"""What a client may ask for: the request bodies of the OpenAI API, as far as they are served here.

A field that is not served is refused with a reason and never ignored; ``user`` alone means nothing to a server that
keeps no accounts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NOT_SERVED = {
    "logprobs": "log-probabilities are not served",
    "top_logprobs": "log-probabilities are not served",
    "best_of": "best_of is not served: ask for n choices",
    "suffix": "there is no infilling",
    "logit_bias": "logit_bias is not served",
    "presence_penalty": "presence_penalty is not served: use repetition_penalty",
    "frequency_penalty": "frequency_penalty is not served: use repetition_penalty",
    "response_format": "answers are plain text",
    "tools": "tools are not served",
    "tool_choice": "tools are not served",
    "functions": "tools are not served",
    "function_call": "tools are not served",
}
"""Fields of the official API, each with what to say when it asks for something."""

MAX_CHOICES = 128

TokenIds = list[Annotated[int, Field(strict=True)]]


class StreamOptions(BaseModel):
    """What a stream holds besides text."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of request have in common.

    ``top_k``, ``repetition_penalty`` and ``dynamic_ntk`` are ours; the others have the official meaning.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False, description="0 takes the most likely token")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: all")
    repetition_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stop: list[str] = Field(default_factory=list)
    seed: int | None = Field(None, description="the same seed gives the same text; None takes another each time")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    dynamic_ntk: bool | None = Field(None, description="None: as the model's settings say")

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("the body must be a JSON object")
        given = {name: value for name, value in data.items() if value is not None}  # null stands for the default
        for name, reason in NOT_SERVED.items():
            if name in given and name not in cls.model_fields:
                if given[name] not in (0, False, [], {}):
                    raise ValueError(f"{name}: {reason}")
                del given[name]
        return given

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _stop_texts(cls, value: list[str]) -> list[str]:
        if len(value) > 16 or not all(value):
            raise ValueError("up to 16 texts, none of them empty")
        return value

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream true")
        return self


class CompletionRequest(Request):
    """``POST /v1/completions``: texts, or token ids as they are, to continue."""

    prompt: str | list[str] | TokenIds | list[TokenIds]
    max_tokens: int = Field(16, ge=1)
    echo: bool = Field(False, description="the prompt is put before the text")

    def prompts(self) -> list[str | list[int]]:
        """One or several, as a list."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)  # type: ignore[arg-type]


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts(cls, value: Any) -> Any:
        return "".join(TextPart.model_validate(part).text for part in value) if isinstance(value, list) else value


class ChatRequest(Request):
    """``POST /v1/chat/completions``: a conversation to answer."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="None: what is left of the longest text")

    @model_validator(mode="before")
    @classmethod
    def _newer_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("max_completion_tokens") is not None:
            data = dict(data)
            data["max_tokens"] = data.pop("max_completion_tokens")
        return data
