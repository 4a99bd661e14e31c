"""Sequences that are continued together, a token each per step; they may join and leave between steps."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evo_core.generate.forward import Forward
from evo_core.generate.kv_cache import KVCache
from evo_core.generate.sampling import RowSettings, Sampling, choose, penalise

if TYPE_CHECKING:
    from evo_core.config import ModelConfig


@dataclass(eq=False)
class Row:
    """One prompt and what follows it.

    Args:
        prompt: its token ids, at least one.
        limit: tokens of prompt and continuation together.
        sampling: how its tokens are chosen.
        draws: its own random numbers; None takes the most likely tokens.
        stop_ids: ids that end this text, besides those that end every text.
        log_probs: filled with the model's log-probability of each token in nats, before penalties and temperature;
            None where nobody asks.

    Attributes:
        new: the continuation so far, the token that ended it included.
        finished: whether an ending token was chosen.
        failed: why no token could be chosen; None where all is well.
    """

    prompt: list[int]
    limit: int
    sampling: Sampling
    draws: torch.Generator | None = None
    stop_ids: frozenset[int] = frozenset()
    log_probs: list[float] | None = None
    new: list[int] = field(default_factory=list)
    finished: bool = False
    failed: str | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and continuation so far."""
        return len(self.prompt) + len(self.new)

    @property
    def done(self) -> bool:
        """Whether nothing more may follow."""
        return self.finished or self.failed is not None or self.length >= self.limit

    def take(self, token: int, ending: Collection[int]) -> None:
        """Put a token behind the others; a negative one stands for scores that are no numbers."""
        if token < 0:
            self.failed = not_finite(self.length)
            return
        self.new.append(token)
        self.finished = token in ending or token in self.stop_ids


def not_finite(tokens: int) -> str:
    """What is said of a text whose next token cannot be chosen."""
    return f"the model's scores after {tokens} tokens are not finite: its weights are damaged or its dtype too narrow"


def is_stretched(cfg: ModelConfig, rows: Iterable[Row], asked: bool | None = None) -> bool:
    """Whether rows are read with a rotary base that is stretched beyond the trained length.

    Where no row can come beyond it, the base never moves, and keys may be kept rotated, which is cheaper.

    Args:
        asked: whether somebody asked for it; None as the model's settings say.
    """
    wanted = cfg.use_dynamic_ntk_rope if asked is None else asked
    return wanted and max((row.limit for row in rows), default=0) > cfg.max_position_embeddings


def random_numbers(seed: int, number: int) -> torch.Generator:
    """The draws of the prompt of that number, whatever is generated beside it."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class DecodingBatch:
    """Rows that are continued together.

    Args:
        forward: the model.
        ending: ids that end a text.
        drawable: ids below this may be chosen.
        dynamic_ntk: read rows longer than the trained length with a stretched rotary base.

    Attributes:
        rows: those that are not done.
    """

    def __init__(self, forward: Forward, ending: Collection[int], drawable: int, *, dynamic_ntk: bool = False) -> None:
        self.forward, self.drawable, self.dynamic_ntk = forward, drawable, dynamic_ntk
        self.rows: list[Row] = []
        self._ending = frozenset(ending)
        self._ending_ids = torch.tensor(sorted(i for i in ending if i < drawable), dtype=torch.int64)
        self._ending_ids = self._ending_ids.to(forward.device)
        self._cache = KVCache(forward.model, dynamic_ntk=dynamic_ntk)
        self._last = torch.empty(0, dtype=torch.int64, device=forward.device)
        self._rows_changed()

    @torch.inference_mode()
    def add(self, rows: Sequence[Row]) -> None:
        """Read new rows, none of them done, with what follows their prompts so far, and choose one token more of each.

        After an error the batch is of no use any more; its rows may be added to another.
        """
        more = [row.limit - row.length for row in rows]
        logits = self.forward.prompts([[*row.prompt, *row.new] for row in rows], more, self._cache)
        before, self.rows = len(self.rows), [*self.rows, *rows]
        self._rows_changed()
        seen = None if self._seen is None else self._seen[before:]
        chosen = self._choose(logits, rows, self._settings_of(rows), seen)
        self._last = torch.cat([self._last, chosen])
        self._let_go()

    @torch.inference_mode()
    def step(self) -> None:
        """Choose one more token for every row."""
        logits = self.forward.step(self._last, self._cache)
        self._last = self._choose(logits, self.rows, self._settings, self._seen)
        self._let_go()

    @torch.inference_mode()
    def remove(self, rows: Collection[Row]) -> None:
        """Continue these rows no further."""
        self._let_go(rows)

    def _choose(self, logits: Tensor, rows: Sequence[Row], settings: RowSettings, seen: Tensor | None) -> Tensor:
        """Choose the next token of each row and put it behind the others.

        Returns:
            The tokens [rows]; of a row that failed any, since it leaves.
        """
        logits = logits[:, : self.drawable]
        agreed = self.forward.relay.agreed(lambda: self._chosen(logits, rows, settings, seen), len(rows))
        chosen = agreed.clamp(min=0)
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        for row, token in zip(rows, agreed.tolist(), strict=True):
            row.take(token, self._ending)
        self._note_log_probs(logits, rows, chosen)
        return chosen

    def _chosen(self, logits: Tensor, rows: Sequence[Row], settings: RowSettings, seen: Tensor | None) -> Tensor:
        """The next token of each row from logits [rows, drawable]; -1 where they are no numbers."""
        finite, lengths = logits.amax(-1).isfinite(), None
        if settings.length_penalty is not None:
            lengths = torch.tensor([row.length for row in rows], device=logits.device)
        scores = penalise(logits, seen, lengths, self._ending_ids, settings)
        chosen = choose(scores, settings, None if settings.greedy else self._uniform(rows))
        return torch.where(finite, chosen, -1)

    def _note_log_probs(self, logits: Tensor, rows: Sequence[Row], chosen: Tensor) -> None:
        asking = [at for at, row in enumerate(rows) if row.log_probs is not None and row.failed is None]
        if not asking:
            return
        wide = torch.promote_types(logits.dtype, torch.float32)

        def of_chosen() -> Tensor:
            return logits[asking].to(wide).log_softmax(-1).gather(1, chosen[asking, None]).flatten()

        values = self.forward.relay.agreed(of_chosen, len(asking), wide)
        for at, value in zip(asking, values.tolist(), strict=True):
            rows[at].log_probs.append(value)  # type: ignore[union-attr]

    def _uniform(self, rows: Sequence[Row]) -> Tensor:
        numbers = [0.0 if row.draws is None else _draw(row.draws) for row in rows]
        return torch.tensor(numbers, dtype=torch.float64, device=self.forward.device)

    def _let_go(self, unwanted: Collection[Row] = ()) -> None:
        """Rows that are done, or not wanted any more, leave."""
        leaving = [at for at, row in enumerate(self.rows) if row.done or row in unwanted]
        if not leaving:
            return
        order = self._cache.drop(leaving)
        self.rows = [self.rows[at] for at in order]
        self._last = self._last[torch.tensor(order, dtype=torch.int64, device=self._last.device)]
        self._rows_changed()

    def _rows_changed(self) -> None:
        self._seen: Tensor | None = None
        if any(row.sampling.repetition_penalty != 1 for row in self.rows):
            self._seen = torch.zeros(len(self.rows), self.drawable, dtype=torch.bool, device=self.forward.device)
            for at, row in enumerate(self.rows):
                known = [token for token in (*row.prompt, *row.new) if token < self.drawable]
                self._seen[at, torch.tensor(known, dtype=torch.int64)] = True
        self._settings = self._settings_of(self.rows)

    def _settings_of(self, rows: Sequence[Row]) -> RowSettings:
        return RowSettings([row.sampling for row in rows], self.drawable, self.forward.device)


def _draw(numbers: torch.Generator) -> float:
    return torch.rand((), generator=numbers, dtype=torch.float64).item()
