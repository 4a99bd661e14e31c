"""From rows to results: one pool of ranks for all of them, and beside it one process to compare with."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from evo_core.errors import ConfigError
from evo_core.parity.deviation import FLOAT64_BAR, LOSS, NARROW_FACTOR, NORM, Deviations, deviations
from evo_core.parity.diagnosis import diagnosis, rounding
from evo_core.parity.job import Settings, job
from evo_core.parity.layouts import OWN, Row, settings_of
from evo_core.parity.measure import Seen, measure
from evo_core.parity.pool import Pool, RankError
from evo_core.parity.whole import NotWhole, Step, joined

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

TIMEOUT = 300.0
"""Seconds for one row; compilation takes one of them."""


@dataclass(frozen=True)
class Result:
    """What came of a row.

    Attributes:
        cfg: the job, as the ranks ran it.
        ranks: how many.
        found: deviations; None where there is nothing to compare.
        bar: the largest one that is fine.
        why: of a row that is not fine, what happened and what it may mean.
        seconds: of the ranks, without the one process that they are compared with.
    """

    row: Row
    cfg: TrainConfig
    ranks: int
    found: Deviations | None
    bar: float
    why: str | None
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether the layout trains as one process does."""
        return self.why is None


def compared(
    reference: Sequence[Step], ranks: Sequence[Sequence[Seen]], bar: float, *, exact: bool = True
) -> tuple[Deviations | None, str | None]:
    """How far what the ranks saw is from the reference, and why that is not fine, if it is not.

    Args:
        reference: the steps of one process, in float64.
        ranks: by rank, then by step.
        bar: the largest deviation that is fine.
        exact: whether the ranks computed in float64 too.
    """
    try:
        steps = joined(ranks)
    except NotWhole as error:
        return None, str(error)
    found = deviations(reference, steps, exact=exact)
    if found.worst.value <= bar:
        return found, None
    return found, diagnosis(reference, steps, found, bar) if exact else rounding(found, bar)


class Matrix(AbstractContextManager["Matrix"]):
    """Runs rows one after another; a context manager, whose end ends the ranks.

    Args:
        ranks: how many.
        base: the blocks of the job that rows are laid over.
        dtype: float64, float32 or bfloat16.
        timeout: seconds for one row.
    """

    def __init__(self, ranks: int, base: Settings, dtype: str, *, timeout: float = TIMEOUT) -> None:
        self._base, self.dtype = base, dtype
        self._pool, self._alone = Pool(ranks, timeout=timeout), Pool(1, timeout=timeout)
        self._ranks = ranks
        self._references: dict[tuple[str, str], list[Step]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._alone.close()

    def job_of(self, row: Row) -> TrainConfig:
        """A row's job, as the ranks run it.

        Raises:
            ConfigError: it cannot be run, or not on so many ranks.
        """
        cfg = job(self._base, *settings_of(row), dtype=self.dtype)
        cfg.check_world(self._ranks)
        return cfg

    def legal(self, rows: Sequence[Row], named: Collection[str]) -> tuple[list[Row], list[str]]:
        """The rows that the job can have, and a line for each other one.

        Args:
            named: those that were asked for by name.

        Raises:
            ConfigError: the job cannot have one of these, nor its own layout, nor any.
        """
        legal: list[Row] = []
        left_out: list[str] = []
        for row in rows:
            try:
                self.job_of(row)
            except ConfigError as error:
                if row.name == OWN or row.name in named or (row is rows[-1] and not legal):
                    raise
                left_out.append(f"without {row.name}: {error}")
            else:
                legal.append(row)
        return legal, left_out

    def results(self, rows: Sequence[Row]) -> Iterator[Result]:
        """Run the rows, all of which are checked before; each result is there when it is done.

        Raises:
            ConfigError: a row is not legal.
        """
        jobs = [self.job_of(row) for row in rows]
        return (self._result(row, cfg) for row, cfg in zip(rows, jobs, strict=True))

    def _result(self, row: Row, cfg: TrainConfig) -> Result:
        found, bar, seconds = None, FLOAT64_BAR, 0.0
        try:
            reference = self._reference(row, "float64")
            if self.dtype != "float64":
                alone = deviations(reference, self._reference(row, self.dtype), exact=False)
                bar = NARROW_FACTOR * alone.worst.value
            began = time.perf_counter()
            seen = self._pool.run(measure, cfg)
            seconds = time.perf_counter() - began
            found, why = compared(reference, seen, bar, exact=self.dtype == "float64")
        except RankError as error:
            why = str(error)
        return Result(row, cfg, self._ranks, found, bar, why, seconds)

    def _reference(self, row: Row, dtype: str) -> list[Step]:
        """The row's model on one process, the plain way; run once.

        Raises:
            RankError: it cannot be run, or ends in numbers that nothing can be compared with.
        """
        key = json.dumps(row.model, sort_keys=True), dtype
        if key not in self._references:
            cfg = job(self._base, row.model, dtype=dtype)
            try:
                steps = joined(self._alone.run(measure, cfg))
            except RankError as error:
                raise RankError(f"one process, to compare with: {error}") from None
            for number, step in enumerate(steps):
                if not math.isfinite(step.numbers[LOSS] + step.numbers[NORM]):
                    what = f"loss {step.numbers[LOSS]:g} and grad_norm {step.numbers[NORM]:g} in step {number}"
                    raise RankError(f"one process has {what} in {dtype}: there is nothing to compare with")
            self._references[key] = steps
        return self._references[key]
