"""Schedules to try: every one there is, over any number of ranks, chunks and micro-batches."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st

from evo_core.parallel.pipeline.orders import Order, forward_only, one_forward_one_backward, zero_bubble
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.pipeline.timetable import Timetable, timetable

UNTIMED = settings(deadline=None)

MOST_RANKS, MOST_CHUNKS, MOST_MICRO_BATCHES = 5, 3, 20


class Schedule(NamedTuple):
    """Of so many micro-batches.

    Attributes:
        mode: 1F1B (with several chunks interleaved), ZBH1, ZBV, or nothing for passes without gradients.
    """

    mode: str | None
    placing: Placing
    count: int

    @property
    def orders(self) -> list[Order]:
        order = {None: forward_only, "1F1B": one_forward_one_backward, "ZBH1": zero_bubble, "ZBV": zero_bubble}
        return order[self.mode](self.placing, self.count)

    @property
    def timetable(self) -> Timetable:
        return timetable(self.placing, self.orders)


def schedule(mode: str | None, ranks: int, count: int, chunks: int = 1) -> Schedule:
    """A schedule by its figures; ZBV has two chunks."""
    return Schedule(mode, Placing(ranks, 2, is_v=True) if mode == "ZBV" else Placing(ranks, chunks), count)


_RANKS = st.integers(2, MOST_RANKS)
_COUNTS = st.integers(1, MOST_MICRO_BATCHES)
_CHUNKS = st.integers(1, MOST_CHUNKS)

placings = st.one_of(
    st.builds(Placing, _RANKS, _CHUNKS), st.builds(Placing, _RANKS, chunks=st.just(2), is_v=st.just(True))
)
in_training = st.one_of(
    st.builds(schedule, st.just("1F1B"), _RANKS, _COUNTS, _CHUNKS),
    st.builds(schedule, st.sampled_from(["ZBH1", "ZBV"]), _RANKS, _COUNTS),
)
schedules = st.one_of(in_training, st.builds(Schedule, st.none(), placings, _COUNTS))
