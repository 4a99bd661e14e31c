"""Where the parts of a parameter lie on the ranks of the tensor or the weight axis: the placements of each, for all of
them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from evo_core.parallel.mesh import Mesh
from evo_core.placement import Held, Placement, Ranks, Span

Rows = tuple[int, int]
"""The first of some rows and the one behind the last."""


class Pieces:
    """Makes the record of each parameter, by how it is cut over some ranks of a mesh.

    Args:
        gathered: over the weight axis of an isp mesh; else over the tensor axis.
        dealt: of experts that data ranks share.
    """

    def __init__(self, mesh: Mesh, *, gathered: bool = False, dealt: bool = False) -> None:
        cut, copies = mesh.tensor, mesh.data
        if dealt:
            assert mesh.experts is not None  # whoever asks has them
            copies = mesh.experts.data
        if gathered:
            assert mesh.weights is not None  # whoever asks has isp
            cut, copies = mesh.weights.cut, mesh.weights.data
        self.count, self.rank, self._kind = cut.size, cut.rank, {"gathered": gathered, "dealt": dealt}
        firsts = [rank - self.rank for rank in copies.ranks]

        @cache
        def ranks(holders: tuple[int, ...]) -> Ranks:
            return tuple(sorted(first + holder for first in firsts for holder in holders))

        self._ranks = ranks

    def whole(self, shape: Sequence[int], *, partial: bool) -> Held:
        """All of it on each.

        Args:
            partial: whether each sees a part of its gradient.
        """
        everywhere = Placement.whole(shape, self._ranks(tuple(range(self.count))))
        return Held((everywhere,) * self.count, self.rank, partial, **self._kind)

    def even(self, shape: Sequence[int], dim: int) -> Held:
        """One of equal parts along a dimension on each."""
        each = (Placement.cut(shape, dim, t, self.count, self._ranks((t,))) for t in range(self.count))
        return Held(tuple(each), self.rank, partial=False, **self._kind)

    def rows(self, shape: Sequence[int], of_each: Sequence[Iterable[Rows]]) -> Held:
        """Some rows on each, in the order given; rows that several hold are given alike to each of them.

        Args:
            of_each: by rank.
        """
        holders: dict[Rows, list[int]] = {}
        for t, rows in enumerate(of_each):
            for each in rows:
                holders.setdefault(each, []).append(t)
        return Held(
            tuple(
                Placement.joined(shape, 0, [Span(*each, self._ranks(tuple(holders[each]))) for each in rows])
                for rows in of_each
            ),
            self.rank,
            partial=True,
            **self._kind,
        )


def head_rows(
    layout: str, heads: int, kv_heads: int, width: int, t: int, count: int
) -> tuple[list[Rows], list[Rows], list[Rows]] | list[Rows]:
    """The rows of queries, keys and values that belong to the t-th of `count` parts of the heads.

    Key and value heads are shared out where there are enough of them, else each is on a run of neighbouring ranks.

    Args:
        layout: "split" gives the rows of three tensors; "blocked" and "grouped" those of the fused one, in the order in
            which attention reads them (families/family.py).
        heads, kv_heads: of the whole model; count divides heads, and kv_heads divides count or the other way round.
        width: of a head.
    """
    group, queries = heads // kv_heads, heads // count
    own = range(t * queries, (t + 1) * queries)
    kv_own = range(own.start // group, (own.stop - 1) // group + 1)

    def at(head: int) -> Rows:
        return head * width, (head + 1) * width

    if layout == "split":
        keys = [at(kv) for kv in kv_own]
        return [at(head) for head in own], keys, keys
    if layout == "blocked":
        after = [heads + kv for kv in kv_own] + [heads + kv_heads + kv for kv in kv_own]
        return [at(head) for head in (*own, *after)]
    rows = []  # grouped: of each key/value head its queries, the key and the value lie together
    for kv in kv_own:
        first = kv * (group + 2)
        rows += [at(first + head - kv * group) for head in own if head // group == kv]
        rows += [at(first + group), at(first + group + 1)]
    return rows
