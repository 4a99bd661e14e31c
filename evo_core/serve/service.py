"""What is served: a model under a name, and how a request becomes choices of the engine."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from evo_core.errors import DataError
from evo_core.generate.batch import Row, random_numbers
from evo_core.generate.prompt_ids import ending_ids, ids_of
from evo_core.generate.sampling import Sampling
from evo_core.serve.answers import Answer, ApiError
from evo_core.serve.chat import Chat
from evo_core.serve.engine import Choice, Engine, Event
from evo_core.serve.requests import MAX_CHOICES, ChatRequest, CompletionRequest, Request

if TYPE_CHECKING:
    from evo_core.data.tokenizers import Tokenizer
    from evo_core.model import Decoder


class Service:
    """A model that answers requests.

    Args:
        model, tokenizer: as `evo_core.checkpoint.load_model` gives them.
        name: what clients call it.
        max_batch: continuations at a time.
        max_length: tokens of prompt and continuation together; None takes four times the trained length, but no more
            than 16384 unless it was trained on more.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, name: str, *, max_batch: int = 16, max_length: int | None = None
    ) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.chat = Chat(tokenizer)
        trained = model.cfg.max_position_embeddings
        self.max_length = max_length or max(trained, min(4 * trained, 16384))
        ending = ending_ids(None, model, tokenizer) | self.chat.ending
        self.engine = Engine(model, tokenizer, ending, max_batch=max_batch)

    def card(self) -> dict[str, Any]:
        """The model as ``/v1/models`` lists it; the last three fields are ours."""
        cfg = self.model.cfg
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "evo",
            "max_length": self.max_length,
            "trained_length": cfg.max_position_embeddings,
            "dynamic_ntk": cfg.use_dynamic_ntk_rope,
        }

    def check_name(self, name: str | None) -> None:
        """Raises ApiError where a request names another model."""
        if name not in (None, "", self.name):
            message = f"there is no model {name!r} here: this server has {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def completion(self, request: CompletionRequest, tell: Callable[[Event], None]) -> tuple[Answer, list[Choice]]:
        """The choices of a completion, ``n`` for each prompt."""
        self.check_name(request.model)
        prompts = request.prompts()
        if not prompts or len(prompts) * request.n > MAX_CHOICES:
            raise ApiError(400, f"prompt: between 1 and {MAX_CHOICES} choices are served at a time", param="prompt")
        try:
            # An id list is what it says: no padding is taken from it.
            ids = [ids_of(prompt, i, self.model, self.tokenizer, pad_id=-1) for i, prompt in enumerate(prompts)]
        except DataError as error:
            raise ApiError(400, f"prompt: {error.message}", param="prompt") from None
        limits = [self._limit(len(prompt), request.max_tokens) for prompt in ids]
        before = {}
        for number in range(len(prompts) * request.n):
            prompt = prompts[number // request.n]
            text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
            before[number] = text if request.echo else ""
        answer = Answer(False, self.name, sum(map(len, ids)), before)
        return answer, self._choices(request, ids, limits, [], tell)

    def answer(self, request: ChatRequest, tell: Callable[[Event], None]) -> tuple[Answer, list[Choice]]:
        """The choices of an answer to a conversation."""
        self.check_name(request.model)
        try:
            ids = ids_of(self.chat.ids(request.messages), 0, self.model, self.tokenizer, pad_id=-1)
        except DataError as error:
            raise ApiError(400, f"messages: {error.message}", param="messages") from None
        limit = self._limit(len(ids), request.max_tokens)
        answer = Answer(True, self.name, len(ids), dict.fromkeys(range(request.n), ""))
        return answer, self._choices(request, [ids], [limit], list(self.chat.stops), tell)

    def _limit(self, prompt: int, new: int | None) -> int:
        """Tokens of prompt and continuation together."""
        total = self.max_length if new is None else prompt + new
        if total > self.max_length or prompt >= self.max_length:
            asked = f"{prompt} tokens of prompt" + ("" if new is None else f" and {new} of max_tokens")
            message = f"{asked}: this server takes {self.max_length} tokens together (--max-length)"
            raise ApiError(400, message, param="max_tokens", code="context_length_exceeded")
        return total

    def _choices(
        self,
        request: Request,
        prompts: list[list[int]],
        limits: list[int],
        stops: list[str],
        tell: Callable[[Event], None],
    ) -> list[Choice]:
        seed = secrets.randbits(63) if request.seed is None else request.seed
        draws = request.temperature > 0
        sampling = Sampling(
            do_sample=draws,
            temperature=request.temperature if draws else 1.0,
            top_k=request.top_k,
            top_p=request.top_p,
            repetition_penalty=request.repetition_penalty,
        )
        wanted = self.model.cfg.use_dynamic_ntk_rope if request.dynamic_ntk is None else request.dynamic_ntk
        choices = []
        for number in range(len(prompts) * request.n):
            which = number // request.n
            row = Row(prompts[which], limits[which], sampling, random_numbers(seed, number) if draws else None)
            choices.append(Choice(number, row, self.tokenizer, [*stops, *request.stop], wanted, tell))
        return choices
