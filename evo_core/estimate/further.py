"""From steps of few layers and micro-batches to what a step of all of them holds and sends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from evo_core.estimate.step_cost import Counted
from evo_core.parallel.pipeline.orders import Pass, Work
from evo_core.parallel.pipeline.stages import timetable_of

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.parallel.mesh import Mesh

Key = TypeVar("Key")


class Layers(NamedTuple):
    """Of a stage, or of several.

    Attributes:
        once: those that compute once.
        again: those that run again in the backward pass.
    """

    once: int
    again: int

    @classmethod
    def of(cls, blocks: Sequence[int], fraction: float) -> Layers:
        """Those of a stage of which a fraction runs again."""
        again = int(len(blocks) * fraction)
        return cls(len(blocks) - again, again)

    @property
    def all(self) -> int:
        """Of both kinds."""
        return self.once + self.again


def few_layers(wanted: Collection[Layers], *, fetches: bool) -> tuple[Layers, ...] | None:
    """Layers of each stage from which those wanted can be told; None where stages are unlike, or have no more.

    Args:
        wanted: of each stage here.
        fetches: whether weights of several blocks are whole at a time.
    """
    kinds = {(each.once > 0, each.again > 0) for each in wanted}
    if len(kinds) > 1:
        return None
    ((once, again),) = kinds
    if once and again:
        first = Layers(2, 2) if fetches else Layers(1, 1)
        runs: tuple[Layers, ...] = (first, Layers(first.once + 1, first.again), Layers(first.once, first.again + 1))
    else:
        few = 3 if fetches else 1
        runs = tuple(Layers(n * once, n * again) for n in (few, few + 1))
    enough = all(each.once >= runs[0].once and each.again >= runs[0].again for each in wanted)
    return runs if enough and any(each.all > max(run.all for run in runs) for each in wanted) else None


def at(wanted: Mapping[int, Layers], runs: Mapping[Layers, Counted]) -> Counted:
    """What a step holds and sends with other layers.

    Args:
        wanted: by stage of this rank.
        runs: by the layers of each stage, from `few_layers`.
    """
    base = next(iter(runs))

    def line(figures: Callable[[Counted], Mapping[Key, float]], more: Layers) -> dict[Key, float]:
        """The first run's, and for each further layer the difference that one made."""
        first = figures(runs[base])
        found = dict(first)
        for run, counted in runs.items():
            steps = (more.once * (run.once - base.once)) + (more.again * (run.again - base.again))
            for key, size in figures(counted).items():
                found[key] = found.get(key, 0.0) + steps * (size - first.get(key, 0.0))
        return found

    def further(layers: Layers) -> Layers:
        return Layers(layers.once - base.once, layers.again - base.again)

    # Of several stages a layer more is one in each: a mean of theirs, exact since all is a sum over layers.
    each = [further(layers) for layers in wanted.values()]
    mean = Layers(*(sum(kind) / len(each) for kind in zip(*each, strict=True)))
    passes: dict[tuple[Pass, int], tuple[float, float]] = {}
    for there in runs[base].passes:
        of_pass = line(_rise(there), further(wanted[there[1]]))
        passes[there] = of_pass[0], of_pass[1]
    return Counted(
        line(lambda c: c.held, mean), line(lambda c: c.sent, mean), line(lambda c: c.in_passes, mean), passes
    )


def _rise(there: tuple[Pass, int]) -> Callable[[Counted], dict[int, float]]:
    """The two figures of a pass, by their places."""
    return lambda counted: dict(enumerate(counted.passes[there]))


def of_micro_batches(counted: Counted, cfg: TrainConfig, mesh: Mesh, few: int, count: int) -> Counted:
    """A step of `count` micro-batches from one of `few`."""
    if few == count:
        return counted if not counted.passes else _replayed(counted, cfg, mesh, count)
    sent: dict[tuple[str, str], float] = dict(counted.sent)
    for key, size in counted.in_passes.items():
        if not (mesh.shards and key == ("all_reduce", mesh.replica.name)):  # with the last gradients alone
            sent[key] += size * (count - few) / few
    more = replace(counted, sent=sent)
    return _replayed(more, cfg, mesh, count) if counted.passes else more


def _replayed(counted: Counted, cfg: TrainConfig, mesh: Mesh, count: int) -> Counted:
    """With the activations that are alive in the order of a pipeline's passes."""
    now = peak = 0.0
    for work in timetable_of(cfg, count).steps[mesh.pipeline.rank]:
        if isinstance(work, Work):
            top, change = counted.passes[work.kind, work.stage]
            peak, now = max(peak, now + top), now + change
    return replace(counted, held={**counted.held, "activations": peak})
