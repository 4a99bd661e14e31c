"""The one thread that runs the model: requests join its batches, and every step gives each of them a token.

Requests are served in the order they came, up to ``max_batch`` at a time; who waits joins as soon as somebody is
done, in the middle of the others' texts. So a long answer holds nobody up, and a long prompt only for as long as
it takes to read it once.

What goes wrong with one continuation ends that one alone, with an error of its own. Where a pass through the model
fails as a whole (out of memory), the continuations in it end; those that run beside it go on, and so does the engine.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from evo_core.generate.batch import DecodingBatch, Row, is_stretched
from evo_core.generate.forward import Forward
from evo_core.generate.prompt_ids import drawable
from evo_core.generate.streaming import TextStream
from evo_core.serve.stops import StopTexts

if TYPE_CHECKING:
    from evo_core.data.tokenize.tokenizers import Tokenizer
    from evo_core.model import Decoder

log = logging.getLogger(__name__)

PROMPT_TOKENS = 4096
"""Prompts that join between two steps hold no more tokens than this together, if there are several."""


class Busy(Exception):
    """Too many requests wait already."""


class TokenText(NamedTuple):
    """A token's share of a continuation's text: the text itself, where it begins, and its log-probability in nats."""

    text: str
    offset: int
    log_prob: float


@dataclass(frozen=True)
class Event:
    """News of one choice: text that is certain now, and at the end why it ended.

    finish_reason: "stop" (an ending token or a stop text), "length", or "error" with ``error`` saying what.
    tokens: of the continuation so far.
    pieces: the text's tokens, where their log-probabilities were asked for.
    status: of HTTP, that of an error.
    """

    choice: int
    text: str
    finish_reason: str | None = None
    tokens: int = 0
    pieces: tuple[TokenText, ...] = ()
    error: str | None = None
    status: int = 200


class Choice:
    """One continuation that a request asked for.

    Args:
        number: its position in the answer.
        row: prompt, limit and settings.
        tokenizer: turns its tokens into text.
        stops: texts that end it.
        dynamic_ntk: read beyond the trained length with a stretched rotary base.
        tell: called with each `Event`, on the engine's thread.
    """

    def __init__(
        self,
        number: int,
        row: Row,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        dynamic_ntk: bool,
        tell: Callable[[Event], None],
    ) -> None:
        self.number, self.row, self.dynamic_ntk, self.tell = number, row, dynamic_ntk, tell
        self._text, self._stops = TextStream(tokenizer, row.prompt), StopTexts(stops)
        self._pieces: list[TokenText] = []
        self._read = self._told = 0
        self.ended = False

    def advance(self) -> None:
        """Tell what one more token brought; whatever goes wrong with that is told as this choice's error."""
        try:
            if self.row.failed is not None:
                self.fail(self.row.failed)
            else:
                self._advance()
        except Exception as error:
            log.exception("a continuation cannot be told")
            self.fail(_reason(error))

    def _advance(self) -> None:
        ended_by_token = self.row.finished
        text = "" if ended_by_token else self._stops.push(self._decoded(self._text.push(self.row.new[-1])))
        if self.row.done and not self._stops.found:
            text += self._stops.push(self._decoded(self._text.finish(), last=True))
            if not self._stops.found:
                text += self._stops.finish()
        reason = None
        if ended_by_token or self._stops.found:
            reason = "stop"
        elif self.row.done:
            reason = "length"
        self.ended = reason is not None
        if text or reason:
            self._told += len(text)
            self.tell(Event(self.number, text, reason, len(self.row.new), self._certain_pieces()))

    def _decoded(self, text: str, *, last: bool = False) -> str:
        """Note whose text that is: the newest token's, or at the end more of the last one's."""
        if self.row.log_probs and not last:
            self._pieces.append(TokenText(text, self._read, self.row.log_probs[-1]))
        elif self._pieces and text:
            self._pieces[-1] = self._pieces[-1]._replace(text=self._pieces[-1].text + text)
        self._read += len(text)
        return text

    def _certain_pieces(self) -> tuple[TokenText, ...]:
        """Those tokens not told yet whose text has been told as a whole; at the end also the one that was cut."""
        whole = [piece for piece in self._pieces if piece.offset + len(piece.text) <= self._told]
        rest = self._pieces[len(whole) :]
        if self.ended and rest and rest[0].offset < self._told:
            whole.append(rest[0]._replace(text=rest[0].text[: self._told - rest[0].offset]))
        self._pieces = rest
        return tuple(whole)

    def fail(self, message: str, status: int = 500) -> None:
        """Tell that nothing more will come."""
        self.ended = True
        try:
            self.tell(Event(self.number, "", "error", len(self.row.new), error=message, status=status))
        except Exception:
            log.exception("nobody hears that a continuation has failed")


class Engine:
    """Runs a model for many requests at a time.

    Args:
        model, tokenizer: as `evo_core.checkpoint.load_model` gives them.
        ending: ids that end a text.
        max_batch: continuations at a time.
        max_waiting: continuations that may wait for their turn.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        ending: Collection[int],
        *,
        max_batch: int = 16,
        max_waiting: int = 256,
    ) -> None:
        self._forward, self._ending, self._drawable = Forward(model), ending, drawable(model, tokenizer)
        self._cfg, self.max_batch, self.max_waiting = model.cfg, max_batch, max_waiting
        self._batches = {stretched: self._batch(stretched) for stretched in (False, True)}
        self._running: dict[Row, Choice] = {}
        self._waiting: deque[Choice] = deque()
        self._unwanted: set[Choice] = set()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="evo-engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self, *, wait: bool = True) -> None:
        """End all that runs or waits with an error, and the thread; may be called from a signal handler with wait
        False, and more than once."""
        self._closing = True
        if wait:
            with self._changed:
                self._changed.notify()
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self._closing

    def load(self) -> tuple[int, int]:
        """How many continuations run, and how many wait."""
        return len(self._running), len(self._waiting)

    def submit(self, choices: Sequence[Choice]) -> None:
        """Queue the choices of one request.

        Raises:
            Busy: too many wait already.
        """
        with self._changed:
            if self._closing or len(self._waiting) + len(choices) > self.max_waiting:
                raise Busy
            self._waiting.extend(choices)
            self._changed.notify()

    def cancel(self, choices: Collection[Choice]) -> None:
        """Nobody wants these any more."""
        with self._changed:
            self._unwanted.update(choice for choice in choices if not choice.ended)
            self._changed.notify()

    def _batch(self, stretched: bool) -> DecodingBatch:
        return DecodingBatch(self._forward, self._ending, self._drawable, dynamic_ntk=stretched)

    def _run(self) -> None:
        going = True
        while going:
            try:
                going = self._take_news()
                for stretched, batch in self._batches.items():
                    if going and batch.rows:
                        self._step(stretched)
            except Exception as error:  # no pass's and no choice's: of what runs nothing can be relied on
                self._batches = {stretched: self._batch(stretched) for stretched in self._batches}
                self._fail(list(self._running), error)
        for choice in [*self._running.values(), *self._waiting]:
            choice.fail("the server is stopping", 503)

    def _take_news(self) -> bool:
        """Wait until there is work, let go what is unwanted, and let in who waits; False when it is over."""
        with self._changed:
            while not (self._waiting or self._running or self._closing):
                self._changed.wait(timeout=0.5)
            if self._closing:
                return False
            unwanted, self._unwanted = self._unwanted, set()
            if unwanted:
                self._waiting = deque(choice for choice in self._waiting if choice not in unwanted)
            self._let_go([choice for choice in unwanted if choice.row in self._running])
            fresh: list[Choice] = []
            tokens = 0
            while self._waiting and len(self._running) + len(fresh) < self.max_batch:
                tokens += len(self._waiting[0].row.prompt)
                if fresh and tokens > PROMPT_TOKENS:
                    break
                fresh.append(self._waiting.popleft())
            self._running |= {choice.row: choice for choice in fresh}
        for stretched in self._batches:
            rows = [c.row for c in fresh if is_stretched(self._cfg, [c.row], c.dynamic_ntk) == stretched]
            if rows:
                self._join(stretched, rows)
        return True

    def _join(self, stretched: bool, rows: Sequence[Row]) -> None:
        """Read rows and give each a token; where that fails, one by one, so that it ends only who is at fault."""
        batch = self._batches[stretched]
        beside = list(batch.rows)
        try:
            batch.add(rows)
        except Exception as error:
            self._batches[stretched] = self._batch(stretched)
            if beside:  # read anew, since the failure may have left their keys and values half moved
                self._join(stretched, beside)
            if len(rows) == 1:
                self._fail(rows, error)
            else:
                for row in rows:
                    self._join(stretched, [row])
        else:
            self._tell(rows)

    def _step(self, stretched: bool) -> None:
        """Give every row of a batch one more token."""
        batch = self._batches[stretched]
        rows = list(batch.rows)
        try:
            batch.step()
        except Exception as error:
            self._batches[stretched] = self._batch(stretched)
            self._fail(rows, error)
        else:
            self._tell(rows)

    def _tell(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._running[row].advance()
        self._let_go([self._running[row] for row in rows if self._running[row].ended])

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        log.error("a pass through the model failed; its requests are answered with the error", exc_info=error)
        for row in rows:
            self._running.pop(row).fail(_reason(error))

    def _let_go(self, choices: Sequence[Choice]) -> None:
        rows = {choice.row for choice in choices}
        for row in rows:
            del self._running[row]
        for batch in self._batches.values():
            batch.remove(rows)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
