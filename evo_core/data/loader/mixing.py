"""Mixing data types by explicit weights (``data.type_weights``), at random access.

Every `PERIOD` positions of the global order hold a fixed number of packs of each type: type t has

    q_t = PERIOD * w_t / sum(w),

rounded to whole numbers by the largest remainder, and at least 1 where w_t > 0. In period b they lie in the order of
a random permutation that depends on (seed, b). The packs of a type come in the order of its stream, one after the
other, so a type with a large weight runs through its documents several times, in another order each time, while one
with a small weight has not ended. Position p is pack b * q_t + r of its type's stream, where b = p // PERIOD and r
counts the positions of that type before it in the period.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evo_core.data.corpus.index import Epochs, Index
from evo_core.data.loader.order import permutation

PERIOD = 1 << 16


def shares(weights: Sequence[float]) -> list[int]:
    """How many of `PERIOD` packs each type gets.

    Raises:
        ValueError: no weight is above 0.
    """
    total = 0.0
    for weight in weights:  # not by `sum`, which rounds otherwise from Python 3.12 on: the order must not hang on that
        total += weight
    if total <= 0:
        raise ValueError("no type has a weight above 0")
    exact = [PERIOD * weight / total for weight in weights]
    result = [max(int(share), 1) if weight else 0 for share, weight in zip(exact, weights, strict=True)]
    # Packs that rounding down left over go to those that lost the most by it; equal ones in the order of types, so
    # that the order of the data does not hang on how sorting breaks ties.
    by_remainder = sorted(range(len(exact)), key=lambda t: (result[t] - exact[t], t))
    for t in by_remainder[: max(PERIOD - sum(result), 0)]:
        result[t] += 1
    # Types with a tiny weight were given 1: where that makes too many, the largest can best do without.
    result[max(range(len(exact)), key=lambda t: result[t])] -= sum(result) - PERIOD
    return result


class WeightedOrder:
    """The global order of packs where types have weights.

    Args:
        weights: of each type; at least one above 0.
        sizes: what each type holds, in units of per_pack.
        per_pack: how much of it a pack takes.
        seed: key of the permutations.
        index: keeps them.
    """

    def __init__(
        self, weights: Sequence[float], sizes: Sequence[int], per_pack: int, seed: int, index: Index | None = None
    ) -> None:
        self._shares = shares(weights)
        self._passes = min(size / (per_pack * share) for size, share in zip(sizes, self._shares, strict=True) if share)
        types = np.repeat(np.arange(len(weights), dtype=np.int32), self._shares)

        def period(number: int) -> dict[str, np.ndarray]:
            mixed = types[permutation(PERIOD, seed, "mix", number)]
            # By position: packs of the same type before it, which is its number among that type's in this period.
            earlier = np.empty(PERIOD, np.int32)
            for t, share in enumerate(self._shares):
                earlier[mixed == t] = np.arange(share)
            return {"types": mixed, "earlier": earlier}

        self._period = Epochs(index or Index(), "mix", period, kept=2)

    def locate(self, position: int) -> tuple[int, int]:
        """(type, pack of that type's stream) at a position in the global order."""
        number, at = divmod(position, PERIOD)
        period = self._period(number)
        data_type = int(period["types"][at])
        return data_type, number * self._shares[data_type] + int(period["earlier"][at])

    def epoch_of(self, position: int) -> int:
        """Passes over the type that is used up first."""
        return int(position / PERIOD / self._passes)
