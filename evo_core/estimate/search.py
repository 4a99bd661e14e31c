"""The layouts worth having: all legal ones sketched, the best of them run without memory.

Every layout is checked by the rules of configurations and sketched by arithmetic. In the order of the time that the
sketches give, those that may fit are run; of layouts that share layers, stages and weights alike the first that fits is
kept, since the others of its kind are slower. What is returned has been run, and fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from evo_core.config import TrainConfig
from evo_core.errors import ConfigError
from evo_core.estimate.assumptions import Assumptions
from evo_core.estimate.found import Cost, Found, find
from evo_core.estimate.layout import Layout, candidates, is_legal
from evo_core.estimate.rank_cost import quick_cost
from evo_core.estimate.sketch import Sketch, sketch
from evo_core.estimate.step_time import Held, step_time

SHOWN = 5
"""Layouts that are looked for."""

_SKETCHED = 0.97
"""Where this share of what a sketch needs does not fit either, the layout is not run."""

_MARGIN = 1.01
"""Layouts are run until the next one is slower than the last one kept by this, by its sketch."""

_MOST_RUNS, _MOST_OF_A_KIND = 16, 2
"""Layouts that are run; of them those of a kind, none of which fits."""
_DOUBLED = 7
"""For a job that does not fit so many times twice the GPUs are tried."""


class Sketched(NamedTuple):
    """A legal layout before it is run.

    Attributes:
        seconds: of a step.
    """

    layout: Layout
    cfg: TrainConfig
    cost: Sketch
    seconds: float


@dataclass
class Searched:
    """What came of a search.

    Attributes:
        best: what fits, the fastest first, each of another kind.
        held_back: of each kind that is kept the bytes of a faster layout of it that does not fit, with its name.
        legal: layouts there are.
        runs: of them that were run.
    """

    best: list[tuple[Layout, Found]] = field(default_factory=list)
    held_back: dict[tuple, tuple[Layout, int]] = field(default_factory=dict)
    legal: int = 0
    runs: int = 0


def legal(cfg: TrainConfig, gpus: int, assumed: Assumptions) -> list[Sketched]:
    """Every layout that the job may have on so many GPUs, the fastest first.

    Raises:
        ConfigError: the job states the micro-batches of a data-parallel rank, and its own layout has no such number.
    """
    found = []
    for layout in candidates(cfg, gpus, assumed.node):
        changed = layout.applied(cfg)
        if is_legal(changed, gpus):
            degrees = changed.degrees(gpus)
            cost = sketch(changed, degrees)
            held = Held(cost.parameters, cost.gradients, cost.states, cost.operations)
            seconds = step_time(changed, degrees, cost.sent, held, assumed).seconds
            found.append(Sketched(layout, changed, cost, seconds))
    return sorted(found, key=lambda each: (each.seconds, each.cost.memory))


def search(
    cfg: TrainConfig,
    gpus: int,
    memory: float,
    assumed: Assumptions,
    cost: Cost = quick_cost,
    progress: Callable[[int], None] = lambda runs: None,
) -> Searched:
    """The fastest layouts of a job on so many GPUs.

    Args:
        memory: bytes of a GPU.
        cost: of one rank of a layout.
        progress: told how many layouts have been run.

    Raises:
        ConfigError: none is legal, or none fits; with the nearest that does.
    """
    known = legal(cfg, gpus, assumed)
    if not known:
        raise _none_legal(cfg, gpus, assumed)
    searched = Searched(legal=len(known))
    slowest, tries = float("inf"), Counter[tuple]()
    for each in known:
        kind = each.layout.kind
        if each.seconds > slowest * _MARGIN or searched.runs == _MOST_RUNS:
            break
        if tries[kind] == _MOST_OF_A_KIND or any(layout.kind == kind for layout, _ in searched.best):
            continue
        needs = each.cost.memory
        if each.cost.lasting <= memory and needs * _SKETCHED <= memory:
            found = find(each.cfg, gpus, assumed, cost)
            searched.runs += 1
            tries[kind] += 1
            progress(searched.runs)
            needs = found.memory
            if needs <= memory:
                searched.best.append((each.layout, found))
                searched.best.sort(key=lambda kept: kept[1].time.seconds)
                if len(searched.best) >= SHOWN:
                    slowest = searched.best[SHOWN - 1][1].time.seconds
                continue
        searched.held_back.setdefault(kind, (each.layout, needs))
    if not searched.best:
        raise _none_fits(cfg, known, gpus, memory, assumed, cost)
    del searched.best[SHOWN:]
    return searched


def smallest(known: list[Sketched], gpus: int, assumed: Assumptions, cost: Cost) -> Found:
    """The layout that needs least memory, of those whose sketches need least."""
    least = sorted(known, key=lambda each: each.cost.memory)
    runs = [find(each.cfg, gpus, assumed, cost) for each in _of_several_kinds(least, 2)]
    return min(runs, key=lambda found: found.memory)


def _of_several_kinds(known: list[Sketched], many: int) -> Iterator[Sketched]:
    seen: set[tuple] = set()
    for each in known:
        if each.layout.kind not in seen:
            seen.add(each.layout.kind)
            yield each
        if len(seen) == many:
            return


def _none_fits(
    cfg: TrainConfig, known: list[Sketched], gpus: int, memory: float, assumed: Assumptions, cost: Cost
) -> ConfigError:
    least = smallest(known, gpus, assumed, cost)
    needs = least.memory / 10**9
    hints = [f"--gpu-memory {needs:.3g}" if float(f"{needs:.3g}") >= needs else f"--gpu-memory {needs + 0.05:.1f}"]
    if more := _with_more(cfg, gpus, memory, assumed, cost):
        hints.append(f"{more} GPUs")
    return ConfigError(
        f"no layout of {gpus} GPUs fits into {memory / 10**9:g} GB: the smallest needs {needs:.1f} GB ({least.name})",
        key="--gpu-memory",
        hint="nearest: " + ", or ".join(hints),
    )


def _with_more(cfg: TrainConfig, gpus: int, memory: float, assumed: Assumptions, cost: Cost) -> int | None:
    """The number of GPUs, of powers of two times as many, with which the job fits."""
    for doubled in range(1, _DOUBLED + 1):
        more = gpus << doubled
        try:
            fitting = [each for each in legal(cfg, more, assumed) if each.cost.memory <= memory]
        except ConfigError:
            continue
        if fitting and smallest(fitting, more, assumed, cost).memory <= memory:
            return more
    return None


def _none_legal(cfg: TrainConfig, gpus: int, assumed: Assumptions) -> ConfigError:
    """On so many GPUs the job has no layout at all: its batch does not divide, or its layers."""
    near = []
    for step in (-1, 1):
        for other in range(gpus + step, max(0, gpus + step * 2 * assumed.node), step):
            if other > 0 and _has_any(cfg, other, assumed):
                near.append(str(other))
                break
    hint = f"nearest: {' or '.join(near)} GPUs" if near else "state another data.global_batch_tokens"
    return ConfigError(f"{gpus} GPUs: the job has no layout for so many", key="--gpus", hint=hint)


def _has_any(cfg: TrainConfig, gpus: int, assumed: Assumptions) -> bool:
    try:
        return any(is_legal(layout.applied(cfg), gpus) for layout in candidates(cfg, gpus, assumed.node))
    except ConfigError:
        return False
