"""What a client may ask for: the request bodies of the OpenAI API, as far as they are served here.

A field of the official API that is not served is accepted where it asks for nothing (null, an empty list, the default)
and refused with a reason where it asks for something; nothing is ignored but names and keys for accounts and caches,
which mean nothing to a server that keeps neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from evo_core.serve.answers import ApiError

MAX_CHOICES = 128
MAX_STOPS, MAX_STOP_LENGTH = 16, 1000
_LONGEST_NAME = 100
"""Characters that are told of a field's name."""

Neutral = Mapping[str, tuple[tuple[Any, ...], str]]
"""Fields that are not served: the values that ask for nothing besides null, and what is said of all others."""

_NO_LOG_PROBS = "log-probabilities are not served, except the chosen tokens' of a completion (logprobs: 0)"
_NO_TOOLS = "tools are not served"
_NO_PENALTY = "is not served: use repetition_penalty"

NOT_SERVED: Neutral = {
    "logprobs": ((False,), _NO_LOG_PROBS),
    "top_logprobs": ((0,), _NO_LOG_PROBS),
    "suffix": (("",), "there is no infilling"),
    "logit_bias": (({},), "logit_bias is not served"),
    "presence_penalty": ((0, 0.0), f"presence_penalty {_NO_PENALTY}"),
    "frequency_penalty": ((0, 0.0), f"frequency_penalty {_NO_PENALTY}"),
    "response_format": (({"type": "text"},), "answers are plain text"),
    "tools": (([],), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "function_call": (("none", "auto"), _NO_TOOLS),
    "parallel_tool_calls": ((False, True), _NO_TOOLS),
    "modalities": ((["text"],), "answers are text"),
    "audio": ((), "answers are text"),
    "prediction": ((), "predicted outputs are not served"),
    "reasoning_effort": (("none",), "there is no reasoning apart from the answer"),
    "verbosity": (("medium",), "verbosity is not served: ask for it in a message"),
    "web_search_options": ((), "nothing is searched"),
    "store": ((False,), "nothing is stored"),
    "metadata": (({},), "nothing is stored"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "prompt_cache_retention": (("in_memory", "in-memory"), "nothing is kept between requests"),
}


class Body(BaseModel):
    """A JSON object that a client sends: null stands for the default, and unknown names are refused."""

    model_config = ConfigDict(extra="forbid")

    not_served: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("must be a JSON object")
        given = {name: value for name, value in data.items() if value is not None}
        for name in given.keys() & cls.not_served.keys() - cls.model_fields.keys():
            neutral, reason = cls.not_served[name]
            value = given.pop(name)
            if not any(value == nothing and type(value) is type(nothing) for nothing in neutral):
                raise FieldError(name, reason)
        return given


class FieldError(ValueError):
    """A field asks for what is not served; found by looking at the body as a whole."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def _number(value: Any) -> Any:
    """Texts and truth values are no numbers, though Python can make some of them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]


class StreamOptions(Body):
    """What a stream holds besides text."""

    not_served = {"include_obfuscation": ((False,), "streams are not padded")}

    include_usage: bool = Field(False, strict=True)


class Request(Body):
    """What both kinds of request have in common.

    ``top_k``, ``repetition_penalty``, ``stop_token_ids`` and ``dynamic_ntk`` are ours; the others have the official
    meaning.
    """

    not_served = NOT_SERVED

    model: str | None = None
    temperature: Number = Field(1.0, ge=0, allow_inf_nan=False, description="0 takes the most likely token")
    top_p: Number = Field(1.0, gt=0, le=1)
    top_k: Whole = Field(0, ge=0, description="0: all")
    repetition_penalty: Number = Field(1.0, gt=0, allow_inf_nan=False)
    n: Whole = Field(1, ge=1, le=MAX_CHOICES)
    best_of: Whole | None = None
    stop: list[str] = Field(default_factory=list)
    stop_token_ids: list[Whole] = Field(default_factory=list, max_length=MAX_CHOICES)
    seed: Whole | None = Field(None, description="the same seed gives the same text; None takes another each time")
    stream: bool = Field(False, strict=True)
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    dynamic_ntk: bool | None = Field(None, strict=True, description="None: as the model's settings say")

    @model_validator(mode="before")
    @classmethod
    def _biases_of_zero(cls, data: Any) -> Any:
        """A bias of 0 asks for nothing."""
        bias = data.get("logit_bias") if isinstance(data, dict) else None
        if isinstance(bias, dict) and all(type(value) in (int, float) and value == 0 for value in bias.values()):
            return {**data, "logit_bias": None}
        return data

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _stop_texts(cls, value: list[str]) -> list[str]:
        if len(value) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_LENGTH for text in value):
            raise ValueError(f"up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Request:
        if self.stream_options is not None and self.stream_options.include_usage and not self.stream:
            raise FieldError("stream_options", "only with stream true")
        if self.best_of not in (None, 1, self.n):
            raise FieldError("best_of", "best_of is not served: ask for n choices")
        return self


def _prompt(value: Any) -> str | list[str] | list[int] | list[list[int]]:
    """Looked at by hand: a union would say in four ways what is wrong."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if all(isinstance(part, str) for part in value) or _are_ids(value):
            return value
        if all(isinstance(part, list) and _are_ids(part) for part in value):
            return value
    raise ValueError("must be a text, a list of texts, a list of token ids (whole numbers), or a list of such lists")


def _are_ids(value: list[Any]) -> bool:
    return all(type(part) is int for part in value)


class CompletionRequest(Request):
    """``POST /v1/completions``: texts, or token ids as they are, to continue."""

    prompt: Annotated[Any, PlainValidator(_prompt)]
    max_tokens: Whole = Field(16, ge=1)
    echo: bool = Field(False, strict=True, description="the prompt is put before the text")
    logprobs: Whole | None = Field(None, description="0: the log-probability of each token; None: none")

    @field_validator("logprobs", mode="before")
    @classmethod
    def _of_the_chosen_tokens(cls, value: Any) -> Any:
        if value is False:
            return None
        if value != 0 or isinstance(value, bool):
            raise ValueError(_NO_LOG_PROBS)
        return value

    @model_validator(mode="after")
    def _no_log_probs_of_prompts(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise FieldError("logprobs", "log-probabilities of prompts are not served: leave echo out")
        return self

    def prompts(self) -> list[str | list[int]]:
        """One or several, as a list."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a conversation, as a client writes it or as an answer of this or another server came."""

    not_served = {
        "refusal": (("",), "refusals are not served"),
        "annotations": (([],), "annotations are not served"),
        "audio": ((), "messages are text"),
        "function_call": ((), _NO_TOOLS),
        "tool_calls": (([],), _NO_TOOLS),
        "tool_call_id": ((), _NO_TOOLS),
    }

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
    max_tokens: Whole | None = Field(None, ge=1, description="None: what is left of the longest text")
    max_completion_tokens: Whole | None = Field(None, ge=1, description="the newer name of max_tokens")

    @property
    def new_tokens(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Kind = TypeVar("Kind", bound=Request)


def read_request(kind: type[Kind], body: Any) -> Kind:
    """A request from a JSON value.

    Raises:
        ApiError: naming the field that is wrong.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return kind.model_validate(body)
    except ValidationError as errors:
        first = errors.errors(include_url=False, include_input=False)[0]
        path = [str(part)[:_LONGEST_NAME] for part in first["loc"]]
        message = first["msg"].removeprefix("Value error, ")
        if isinstance(error := first.get("ctx", {}).get("error"), FieldError):
            path.append(error.field)
        if first["type"] == "extra_forbidden":
            message = "there is no such field here"
        param = ".".join(path)
        raise ApiError(400, f"{param}: {message}", param=param) from None
