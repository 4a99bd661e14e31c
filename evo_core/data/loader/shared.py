"""What ranks get that work on the same batches: the first of them reads, and tells the others.

The ranks of a tensor group share each layer, so they must have the same tokens. One of them opens the data, tokenizes
and draws ahead; the others hold no file, no index and no thread, and get each batch when they ask for it. A `UserError`
of the reading rank is raised on all of them, at the batch it belongs to.

Batches travel in the thread that asks for them: in another one, messages would mix with those of the model's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
import torch

from evo_core.data.loader.batch import Batch
from evo_core.data.loader.packing import count_positions
from evo_core.parallel.collectives import on_first

if TYPE_CHECKING:
    from evo_core.data.loader.prefetch import BatchSource
    from evo_core.parallel.mesh import Axis

T = TypeVar("T")


def shared(
    find: Callable[[], T],
    ranks: Axis | None,
    *,
    tell: Callable[[T], Any] = lambda found: found,
    understand: Callable[[Any], T] = lambda told: told,
) -> T:
    """What the first of some ranks finds, on each of them; every rank must call it.

    Args:
        find: called on the first rank alone; it must not wait for other ranks.
        ranks: None, or a single one, calls `find` and sends nothing.
        tell: makes of it what the others are sent, which can be pickled.
        understand: makes of that what they return.

    Raises:
        UserError: `find` raised it, on every rank.
    """
    if ranks is None or ranks.size == 1:
        return find()
    own: list[T] = []

    def first() -> Any:
        own.append(find())
        return tell(own[0])

    told = on_first(first, ranks.group)
    return own[0] if own else understand(told)


@dataclass(frozen=True)
class Elsewhere:
    """Training data that another rank reads: what there is to know of them here, as `BatchSource` has it."""

    types: tuple[str, ...]
    digest: str
    sequential: bool
    trained: Mapping[str, int] | None
    description: str

    @classmethod
    def tell(cls, data: BatchSource) -> Self:
        """What the others need to know."""
        return cls(data.types, data.digest, data.sequential, data.trained, data.describe())

    def draw(self, step: int) -> tuple[Batch, Any]:
        """Never asked for: batches come from the rank that reads."""
        raise RuntimeError(f"step {step} is drawn by another rank")

    def restore(self, cursor: Any) -> None:
        """Nothing to do: the rank that reads goes on from the cursor."""

    def describe(self) -> str:
        """What there is, for the log."""
        return self.description

    def close(self) -> None:
        """Nothing is held here."""


def shared_batch(draw: Callable[[], Batch], ranks: Axis | None) -> Batch:
    """A batch that the first of some ranks draws, on each of them; arguments and errors as of `shared`."""
    return shared(draw, ranks, tell=_Message.of, understand=_Message.batch)


def shared_batches(begin: Callable[[], Iterator[Batch]], ranks: Axis | None) -> Iterator[Batch]:
    """The batches of an iterator that the first of some ranks makes, on each; arguments and errors as of `shared`."""
    batches: Iterator[Batch] | None = None

    def following() -> Batch | None:
        nonlocal batches
        if batches is None:
            batches = begin()
        return next(batches, None)

    def tell(batch: Batch | None) -> _Message | None:
        return None if batch is None else _Message.of(batch)

    def understand(message: _Message | None) -> Batch | None:
        return None if message is None else message.batch()

    while (batch := shared(following, ranks, tell=tell, understand=understand)) is not None:
        yield batch


class _Message(NamedTuple):
    """A batch as it travels: a quarter of its size, without what follows from the rest.

    Attributes:
        tokens: int32 [2, micro_num, packed_length], ids and labels.
        types: int64 [micro_num], the data type of each micro-batch.
        cu_seqlens: int32 [sequences + 1] of each micro-batch; positions count from 0 in each sequence.
    """

    tokens: np.ndarray
    types: np.ndarray
    cu_seqlens: list[np.ndarray]

    @classmethod
    def of(cls, batch: Batch) -> _Message:
        tokens = np.empty((2, *batch.input_ids.shape), np.int32)
        np.copyto(tokens[0], batch.input_ids.numpy(), casting="same_kind")
        np.copyto(tokens[1], batch.labels.numpy(), casting="same_kind")
        return cls(tokens, batch.type_ids[:, 0].numpy(), [cuts.numpy() for cuts in batch.cu_seqlens])

    def batch(self) -> Batch:
        arrays = np.empty((4, *self.tokens.shape[1:]), np.int64)
        arrays[:2] = self.tokens
        for cuts, positions in zip(self.cu_seqlens, arrays[2], strict=True):
            count_positions(cuts, out=positions)
        arrays[3] = self.types[:, None]
        input_ids, labels, positions, type_ids = torch.from_numpy(arrays)
        return Batch(input_ids, labels, positions, type_ids, [torch.from_numpy(cuts) for cuts in self.cu_seqlens])
