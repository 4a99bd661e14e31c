"""What is served: a model under a name, and how a request becomes choices of the engine."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from evo_core.errors import DataError
from evo_core.generate.batch import Row, random_numbers
from evo_core.generate.prompt_ids import check_ids, ending_ids, ids_of
from evo_core.generate.sampling import Sampling
from evo_core.serve.answers import Answer, ApiError
from evo_core.serve.chat import Chat
from evo_core.serve.engine import Choice, Engine, Event
from evo_core.serve.requests import MAX_CHOICES, ChatRequest, CompletionRequest, Request
from evo_core.serve.stops import StopIds

if TYPE_CHECKING:
    from evo_core.data.tokenize.tokenizers import Tokenizer
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
        self._stop_ids = StopIds(tokenizer)
        longest = max((len(tokenizer.piece(token)) for token in range(tokenizer.vocab_size)), default=1)
        self._longest_text = self.max_length * max(longest, 1)

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
        for prompt in prompts:
            self._check_size(len(prompt), "prompt", isinstance(prompt, str))
        try:
            ids = [self._prompt_ids(prompt, number) for number, prompt in enumerate(prompts)]
        except DataError as error:
            raise ApiError(400, f"prompt: {error.message}", param="prompt") from None
        limits = [self._limit(len(prompt), request.max_tokens) for prompt in ids]
        texts = [self._echo(prompt) if request.echo else "" for prompt in prompts]
        before = {number: texts[number // request.n] for number in range(len(prompts) * request.n)}
        log_probs = request.logprobs is not None
        answer = Answer(False, self.name, sum(map(len, ids)), before, log_probs)
        return answer, self._choices(request, ids, limits, [], tell, log_probs=log_probs)

    def answer(self, request: ChatRequest, tell: Callable[[Event], None]) -> tuple[Answer, list[Choice]]:
        """The choices of an answer to a conversation."""
        self.check_name(request.model)
        self._check_size(sum(len(message.content) for message in request.messages), "messages", True)
        try:
            ids = self.chat.ids(request.messages)
            check_ids(ids, "the conversation", self.model, self.tokenizer)
        except DataError as error:
            raise ApiError(400, f"messages: {error.message}", param="messages") from None
        limit = self._limit(len(ids), request.new_tokens)
        answer = Answer(True, self.name, len(ids), dict.fromkeys(range(request.n), ""))
        return answer, self._choices(request, [ids], [limit], list(self.chat.stops), tell)

    def _prompt_ids(self, prompt: str | list[int], number: int) -> list[int]:
        """A list of ids is what it says: no padding is taken from it."""
        if isinstance(prompt, str):
            return ids_of(prompt, number, self.model, self.tokenizer)
        check_ids(prompt, f"prompt {number + 1}", self.model, self.tokenizer)
        return prompt

    def _echo(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    def _check_size(self, size: int, param: str, is_text: bool) -> None:
        """Refuse what cannot fit before the work of tokenizing it: no token is longer than the vocabulary's longest."""
        if size > (self._longest_text if is_text else self.max_length):
            given = f"{size} {'characters' if is_text else 'tokens'}"
            message = f"{param}: {given} are more than this server takes: {self.max_length} tokens (--max-length)"
            raise ApiError(400, message, param=param, code="context_length_exceeded")

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
        *,
        log_probs: bool = False,
    ) -> list[Choice]:
        try:
            stop_ids = self._stop_ids.of(request.stop, request.stop_token_ids)
        except DataError as error:
            raise ApiError(400, f"stop: {error.message}", param="stop") from None
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
            row = Row(
                prompts[which],
                limits[which],
                sampling,
                random_numbers(seed, number) if draws else None,
                stop_ids=stop_ids,
                log_probs=[] if log_probs else None,
            )
            choices.append(Choice(number, row, self.tokenizer, [*stops, *request.stop], wanted, tell))
        return choices
