"""Which weights are whole at a time: they are fetched before a layer computes, and dropped behind it.

A pass goes through the blocks of a stage, forward or backward. In the first one each layer fetches its weight when it
computes, and its turn is noted. From then on, with `overlap`, the weights of the next block are fetched in that order
while a block computes; it is the order in which they are used, whatever a block is made of and however much of it is
recomputed. All ranks that share weights go through the same layers in the same order, so that their messages meet.

The life of one weight in a training pass, where ranks have `n` parts of it::

    forward     fetched [n parts], used, dropped
    backward    fetched, used for the gradient of the layer's input, dropped
                its own gradient is summed over the ranks; the part that is here arrives a block later

A block that is recomputed uses its weights twice behind one another in the backward pass, and fetches them once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from evo_core.parallel.collectives import Pending, all_gather
from evo_core.parallel.mesh import Axis
from evo_core.parallel.weight.buffers import Buffers
from evo_core.parallel.weight.gradients import Collected, GradientSum

if TYPE_CHECKING:
    from evo_core.parallel.weight.linear import GatheredLinear


class Event(NamedTuple):
    """Something that happened to a layer's weight.

    Attributes:
        what: gather (the message was sent), compute (it has arrived, and the layer computes with it), sum (the message
            with its gradient was sent), or collect (the gradient has arrived).
        block: the layer's.
        layer: its name in the model.
        backward: whether it was in a backward pass.
    """

    what: str
    block: int
    layer: str
    backward: bool


@dataclass
class Record:
    """What happened in a block of `recording`.

    Attributes:
        events: in their order.
        waited: seconds that layers stood still until their weights were there. On a GPU streams wait for each other,
            and no process stands still.
    """

    events: list[Event] = field(default_factory=list)
    waited: float = 0.0

    def count(self, what: str) -> int:
        """How many events of a kind there were."""
        return sum(event.what == what for event in self.events)


@dataclass(eq=False)
class Unit:
    """The layers of a block, in the order in which their weights are used.

    Attributes:
        number: of the block.
        before, after: its neighbours in the stage.
        layers: all of them, as they lie in the model.
        forward, backward: the layers that fetched a weight in the last passes.
    """

    number: int
    before: Unit | None = None
    after: Unit | None = None
    layers: list[GatheredLinear] = field(default_factory=list)
    forward: list[GatheredLinear] = field(default_factory=list)
    backward: list[GatheredLinear] = field(default_factory=list)


@dataclass
class Whole:
    """The whole weight and bias of a layer.

    Attributes:
        works: the messages that bring them; none once they have been waited for.
    """

    weight: Tensor
    bias: Tensor | None
    works: list[Pending]


class Gathering:
    """The weights of a model's blocks on their way; one object for all of them.

    Args:
        axis: the ranks that share each weight.
        overlap: fetch the next block's while one computes, and collect gradients behind the next one.
        pool: keep the memory of whole weights.
        prepare: called with layers before what they hold is sent: an update of it may still be on its way.
    """

    def __init__(
        self,
        axis: Axis,
        *,
        overlap: bool = False,
        pool: bool = False,
        prepare: Callable[..., None] = lambda *layers: None,
    ) -> None:
        self.axis, self.overlap, self.buffers, self._prepare = axis, overlap, Buffers(pool=pool), prepare
        self._under_way: dict[GatheredLinear, Whole] = {}
        self._kept: dict[GatheredLinear, Whole] = {}
        self._collected: dict[GatheredLinear, Collected] = {}
        self._record: Record | None = None

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Note what happens in the block, as tests and benchmarks do."""
        self._record = record = Record()
        try:
            yield record
        finally:
            self._record = None

    def note(self, what: str, layer: GatheredLinear) -> None:
        """Add an event, where anybody asks for it."""
        if self._record is not None:
            self._record.events.append(Event(what, layer.unit.number, layer.name, in_backward()))

    def arrive(self, layer: GatheredLinear) -> None:
        """A layer is about to compute: the first one of its block has the next block's weights fetched ahead.

        To be called where autograd records: nodes that collect the next block's gradients are made here. The engine
        takes the youngest of those that are ready, so it comes to them when this block's are done.
        """
        backward = in_backward()
        if backward and layer in self._kept:  # in a forward pass it is what one that ended early has left
            return
        unit = layer.unit
        order = unit.backward if backward else unit.forward
        is_new = layer not in order
        if is_new:
            order.append(layer)
        if layer is not order[0]:
            return
        next_one = unit.before if backward else unit.after
        if (unit.after if backward else unit.before) is None:  # a pass begins
            self._forget()
            if is_new and not backward:
                self._make_room(unit)
            self._prefetch(unit, backward, but=layer)
        if next_one is not None:
            self._prefetch(next_one, backward)

    def fetch(self, layer: GatheredLinear) -> Whole:
        """The weight of a layer, all of it, for one use; to be given to `done` behind it."""
        whole = self._kept.pop(layer, None) or self._under_way.pop(layer, None) or self._start(layer)
        began = time.perf_counter()
        _wait(whole.works)
        if self._record is not None:
            self._record.waited += time.perf_counter() - began
        self.note("compute", layer)
        return whole

    def done(self, layer: GatheredLinear, whole: Whole, *, again: bool = False) -> None:
        """A layer has used its weight.

        Args:
            again: it is recomputed, and the backward pass which needs the weight too comes next.
        """
        if again:
            self._kept[layer] = whole
        else:
            self._drop(whole)

    def collected(self, layer: GatheredLinear) -> Collected:
        """Where the gradients of a layer's use will be added up, and its parameters for this use."""
        here = None if in_backward() else self._collected.pop(layer, None)
        return here or GradientSum.of(layer)

    def _prefetch(self, unit: Unit, backward: bool, but: GatheredLinear | None = None) -> None:
        """Send for the weights of a block, and make ready what collects their gradients (but of a layer that has)."""
        if not self.overlap:
            return
        self._prepare(*unit.layers)
        for layer in unit.backward if backward else unit.forward:
            if layer not in self._under_way:
                self._under_way[layer] = self._start(layer)
            if not backward and torch.is_grad_enabled() and layer is not but:
                self._collected[layer] = GradientSum.of(layer)

    def _make_room(self, first: Unit) -> None:
        """Make the buffers of a stage, two blocks' at most, where they are kept: nothing is sent for ahead in the first
        pass, so that it alone would make fewer."""
        if not (self.overlap and self.buffers.pool):
            return
        unit: Unit | None = first
        while unit is not None:
            both = [*unit.layers, *(unit.after.layers if unit.after is not None else ())]
            self.buffers.reserve((self.axis.size * part.numel(), part) for layer in both for part in layer.parameters())
            unit = unit.after

    def _start(self, layer: GatheredLinear) -> Whole:
        """Start gathering the weight and the bias of a layer, every rank of the axis its part."""
        parts = [layer.weight.detach(), *([] if layer.bias is None else [layer.bias.detach()])]
        whole, works = [], []
        for part in parts:
            buffer = self.buffers.take((self.axis.size * part.shape[0], *part.shape[1:]), part)
            works.append(all_gather(buffer, part, self.axis.group))
            whole.append(buffer)
        self.note("gather", layer)
        return Whole(whole[0], whole[1] if len(whole) > 1 else None, works)

    def _forget(self) -> None:
        """Drop what the last pass left, as one does that an error or a layer without gradients has ended."""
        for whole in (*self._under_way.values(), *self._kept.values()):
            _wait(whole.works)
            self._drop(whole)
        self._under_way.clear()
        self._kept.clear()
        self._collected.clear()

    def _drop(self, whole: Whole) -> None:
        self.buffers.give_back(whole.weight)
        if whole.bias is not None:
            self.buffers.give_back(whole.bias)


def in_backward() -> bool:
    """Whether autograd's engine is at work: a layer that is called then is recomputed."""
    return torch._C._current_graph_task_id() != -1


def _wait(works: list[Pending]) -> None:
    """Wait for each once: asked again, gloo would wait for another message behind it."""
    for work in works:
        work.wait()
    works.clear()
