"""From rows to results: one pool of ranks for all of them, and beside it one process to compare with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from evo_core.errors import ConfigError
from evo_core.parity.deviation import FLOAT64_BAR, NARROW_FACTOR, Deviations, deviations
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
    reference: Sequence[Step], ranks: Sequence[Sequence[Seen]], bar: float
) -> tuple[Deviations | None, str | None]:
    """How far what the ranks saw is from the reference, and why that is not fine, if it is not.

    Args:
        reference: the steps of one process, in float64.
        ranks: by rank, then by step.
        bar: the largest deviation that is fine.
    """
    try:
        steps = joined(ranks)
    except NotWhole as error:
        return None, str(error)
    exact = bar == FLOAT64_BAR
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

    def legal(self, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
        """The rows that the job can have, and a line for each other one.

        Raises:
            ConfigError: the job cannot have its own layout.
        """
        legal, left_out = [], []
        for row in rows:
            try:
                self.job_of(row)
            except ConfigError as error:
                if row.name == OWN:
                    raise
                left_out.append(f"without {row.name}: {error}")
            else:
                legal.append(row)
        return legal, left_out

    def results(self, rows: Sequence[Row]) -> Iterator[Result]:
        """Run the rows, all of which are checked before; each result is there when it is done.

        Raises:
            ConfigError: a row is not legal.
            RankError: one process cannot run a job.
        """
        jobs = [self.job_of(row) for row in rows]
        return (self._result(row, cfg) for row, cfg in zip(rows, jobs, strict=True))

    def _result(self, row: Row, cfg: TrainConfig) -> Result:
        reference = self._reference(row, "float64")
        bar = FLOAT64_BAR
        if self.dtype != "float64":
            alone = deviations(reference, self._reference(row, self.dtype), exact=False)
            bar = NARROW_FACTOR * alone.worst.value
        began = time.perf_counter()
        try:
            found, why = compared(reference, self._pool.run(measure, cfg), bar)
        except RankError as error:
            found, why = None, str(error)
        return Result(row, cfg, self._ranks, found, bar, why, time.perf_counter() - began)

    def _reference(self, row: Row, dtype: str) -> list[Step]:
        """The row's model on one process, the plain way; run once."""
        key = json.dumps(row.model, sort_keys=True), dtype
        if key not in self._references:
            cfg = job(self._base, row.model, dtype=dtype)
            self._references[key] = joined(self._alone.run(measure, cfg))
        return self._references[key]
