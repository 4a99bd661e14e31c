"""The batches of consecutive steps, drawn ahead of the step that needs them (``data.num_worker``).

Workers are threads: reading a batch of token shards is a few copies of arrays, during which Python is not held, and
so is tokenizing with a compiled tokenizer. So there is no process to start, to feed or to leave behind, batches are
not copied, and an error in a worker is the error that the loop gets, at the step it belongs to.

Of ranks that share each layer (a tensor group) one alone reads, tokenizes and has workers, and the others get its
batches (`shared`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from evo_core.data.loader.batch import Batch
from evo_core.data.loader.shared import Elsewhere, shared, shared_batch
from evo_core.data.loader.train_data import TrainData

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.parallel.mesh import Axis

_AHEAD = 2
"""Batches that each worker may be ahead."""


class BatchSource(Protocol):
    """Training data of one rank: `TrainData`, `StreamData`; `Elsewhere` where another rank reads them.

    Attributes:
        types: data types; their positions are the type ids of a batch.
        digest: of the data and their order.
        sequential: whether steps must be drawn one after the other; then there is a cursor to keep. Data at random
            access find a step's batch by its number.
        trained: by data type how many tokens are trained on; None where that is not known before they are read.
    """

    @property
    def types(self) -> tuple[str, ...]: ...

    @property
    def digest(self) -> str: ...

    @property
    def sequential(self) -> bool: ...

    @property
    def trained(self) -> Mapping[str, int] | None: ...

    def draw(self, step: int) -> tuple[Batch, Any]:
        """A step's batch, and the data cursor after it: plain data that say what comes next."""

    def restore(self, cursor: Any) -> None:
        """Go on from a cursor that `draw` gave."""

    def describe(self) -> str:
        """What there is, for the log."""

    def close(self) -> None:
        """Give back what is shared with other processes."""


class Prefetch:
    """Hands out the batches of steps first, first + 1, … before stop.

    Use it as a context manager: its threads, and what the data share with other processes, end with it.

    Args:
        data: where they come from.
        first: the step to begin with.
        stop: the step to end before.
        workers: threads that draw batches; 0 draws each when it is asked for.
        tensor: the ranks that get the same batches, as in `open_source`.

    Attributes:
        sequential: whether there is a cursor to keep.
        cursor: the data cursor after the batch handed out last, not after those drawn ahead; None where the step says
            what comes next, and on ranks that do not read.
    """

    def __init__(self, data: BatchSource, first: int, stop: int, *, workers: int, tensor: Axis | None = None) -> None:
        self._data, self._steps = data, iter(range(first, stop))
        self._next, self._tensor = first, tensor
        self.sequential = data.sequential
        self.cursor: Any = None
        workers = min(workers, 1) if data.sequential else workers
        if tensor is not None and tensor.rank:
            workers = 0
        self._pool = ThreadPoolExecutor(workers, "batches") if workers and first < stop else None
        self._drawn: deque[Future[tuple[Batch, Any]]] = deque()
        for _ in range(_AHEAD * workers):
            self._begin_one()

    def batch(self, step: int) -> Batch:
        """The batch of the next step; all ranks that get the same one must call it.

        Raises:
            UserError: the data are wrong.
        """
        if step != self._next:
            raise ValueError(f"step {step} was asked for where {self._next} is the next")
        self._next += 1
        return shared_batch(lambda: self._draw(step), self._tensor)

    def close(self) -> None:
        """End the threads; what they have drawn ahead is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._drawn.clear()
        self._data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self, step: int) -> Batch:
        if self._pool is None:
            batch, self.cursor = self._data.draw(step)
        else:
            batch, self.cursor = self._drawn.popleft().result()
            self._begin_one()
        return batch

    def _begin_one(self) -> None:
        step = next(self._steps, None)
        if self._pool is not None and step is not None:
            self._drawn.append(self._pool.submit(self._data.draw, step))


def open_source(cfg: TrainConfig, *, dp_rank: int, dp_size: int, tensor: Axis | None = None) -> BatchSource:
    """The training data of a job, for one of its data-parallel ranks.

    Args:
        cfg: the job.
        dp_rank, dp_size: this data-parallel rank, and how many there are.
        tensor: the ranks that get the same batches, the first of which reads them: all of them must call this. None
            where this one alone does.

    Raises:
        DataError: there are none, or they are wrong; on every rank that gets the same.
        ConfigError: a setting does not fit them or the number of ranks.
    """
    return shared(lambda: _open(cfg, dp_rank, dp_size), tensor, tell=Elsewhere.tell)


def _open(cfg: TrainConfig, dp_rank: int, dp_size: int) -> BatchSource:
    if cfg.data.type == "hf":
        from evo_core.data.loader.hf_stream import StreamData

        return StreamData(cfg, dp_rank=dp_rank, dp_size=dp_size)
    return TrainData(cfg, dp_rank=dp_rank, dp_size=dp_size)
