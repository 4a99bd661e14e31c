"""Our model as lm-eval's `LM`: log-likelihoods in variable-length packs, and generation up to a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from evo_core.evaluate.harness.until import continue_until
from evo_core.evaluate.likelihood import Continuation, Likelihood, likelihoods
from evo_core.parallel.collectives import gather_objects

if TYPE_CHECKING:
    from evo_core.parallel.mesh import Mesh


class HarnessModel(TemplateLM):
    """What lm-eval asks a model for.

    Every rank is given all requests and returns all answers, each having computed its part: for lm-eval there is one
    process, so its metrics and their order do not depend on the number of ranks.

    Texts are tokenized as lm-eval does for causal models: context and continuation together, cut where the context
    alone ends, with the begin id first where the tokenizer begins texts with it. An empty context is the begin id, or
    without one the end id.

    Args:
        model: gives nll and hit for labels.
        tokenizer: of its texts.
        max_length: tokens that it reads at once.
        pack_tokens: tokens in one forward pass.
        batch_size: texts that are generated side by side.
        mesh: the ranks; None answers all requests on this one.
        device: of the model.
        on_progress: called with the work done and all of one kind of request, of this rank.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        pack_tokens: int = 8192,
        batch_size: int = 16,
        mesh: Mesh | None = None,
        device: torch.device | str = "cpu",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.text, self.max_length = model, tokenizer, max_length
        self.pack_tokens, self.batch_size = pack_tokens, batch_size
        self.mesh, self.on_progress = mesh, on_progress
        self._device = torch.device(device)

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text.

        Raises:
            DataError: the tokenizer has none.
        """
        if self.text.eos_id is None:
            raise DataError("this tokenizer has no end token, which the task needs", file=self.text.path)
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self.eot_token_id if self.text.bos_id is None else self.text.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, after what the tokenizer begins texts with unless told otherwise."""
        return [*(() if add_special_tokens is False else self.text.begin), *self.text.encode(string)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = super()._encode_pair(context, continuation)
        if after:
            return before, after
        # The continuation melted into the context's last tokens: it begins at the first that differs.
        whole = self.tok_encode(context + continuation)
        common = next((i for i, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), len(whole))
        return whole[:common], whole[common:]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding gives it) of each continuation after its context."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for (context, continuation), _, ids in requests:
            if not ids:
                raise DataError(f"the continuation {continuation!r} after {context[-40:]!r} has no tokens")
        found = self._score([Continuation(before, ids) for _, before, ids in requests])
        return [(one.log_probability, one.is_greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each whole text, every token once and with as much before it as the model reads."""
        windows: list[Continuation] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            rolled = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            for context, predicted in map(make_disjoint_window, rolled):
                windows.append(Continuation(context, predicted))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, found in zip(owners, self._score(windows), strict=True):
            sums[owner] += found.log_probability
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after each context, up to the first of the request's stop texts."""
        copy, copies = (0, 1) if self.mesh is None else (self.mesh.data.rank, self.mesh.data.size)
        numbers = range(len(requests))[copy::copies]
        contexts = [self.tok_encode(requests[i].args[0]) or [self.prefix_token_id] for i in numbers]
        texts = continue_until(
            self.model,
            self.text,
            contexts,
            [requests[i].args[1] for i in numbers],
            numbers=numbers,
            max_length=self.max_length,
            batch_size=self.batch_size,
            on_progress=self.on_progress,
            mesh=self.mesh,
        )
        found = dict(zip(numbers, texts, strict=True))
        if self.mesh is not None and copies > 1:
            parts = gather_objects(found, self.mesh.data.group)
            found = {number: text for part in parts for number, text in part.items()}
        return [found[number] for number in range(len(requests))]

    def _score(self, continuations: Sequence[Continuation]) -> list[Likelihood]:
        return likelihoods(
            self.model,
            continuations,
            max_length=self.max_length,
            pack_tokens=self.pack_tokens,
            mesh=self.mesh,
            device=self._device,
            on_pack=self.on_progress,
        )
