"""Pieces of tensors written at one layout and read at another; each piece is written once, and all write as much."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader

from evo_core.checkpoint.format1 import turns
from evo_core.checkpoint.tensors import own_tensors, placed, read_tensors, stored_shapes, write_tensors
from evo_core.checkpoint.writers import cut, own_parts
from evo_core.placement import Placed, Placement, Rectangle, Span, tiling_fault
from tests.checkpoint.layouts import LAYOUTS, ONE, Layout, held, wholes
from tests.ranks import run_on_ranks


def write(folder: Path, layout: Layout) -> None:
    write_tensors(folder, held(layout, dist.get_rank(), filled=True))


def differing(folder: Path, layout: Layout, rank: int, *, flat: bool = False) -> list[str]:
    """Read into tensors that hold other numbers; the names of those that are not bit for bit what belongs there."""
    got, wanted = held(layout, rank, filled=False), held(layout, rank, filled=True)
    read_tensors(folder, got, flat=flat)
    return [name for name in wanted if not torch.equal(got[name].local, wanted[name].local)]


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pieces_move_between_layouts(tmp_path: Path, layout: Layout) -> None:
    run_on_ranks(write, layout.ranks, tmp_path, layout)
    for other in LAYOUTS:
        for rank in range(other.ranks):  # reading takes no collectives: one process can be any rank
            assert differing(tmp_path, other, rank) == [], (other, rank)


def test_there_and_back_again(tmp_path: Path) -> None:
    """1 -> 2 -> 4 -> 1 ranks, each writing what it has read."""

    def move(source: Path, target: Path, layout: Layout) -> None:
        tensors = held(layout, dist.get_rank(), filled=False)
        read_tensors(source, tensors)
        write_tensors(target, tensors)

    run_on_ranks(write, 1, tmp_path / "0", ONE)
    for step, layout in enumerate([Layout(2, 1), Layout(2, 2), ONE]):
        run_on_ranks(move, layout.ranks, tmp_path / f"{step}", tmp_path / f"{step + 1}", layout)
    assert differing(tmp_path / "3", ONE, 0) == []


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_vectors_of_format_1_are_read_into_pieces(tmp_path: Path, layout: Layout) -> None:
    flat = {name: tensor.reshape(-1) for name, tensor in wholes().items()}
    run_on_ranks(lambda: write_tensors(tmp_path, flat | {f"moment.{name}": -flat[name] for name in flat}), 2)
    for rank in range(layout.ranks):
        assert differing(tmp_path, layout, rank, flat=True) == []


def test_a_vector_is_read_in_stretches_of_whole_rows() -> None:
    """Of a piece that leaves out columns each row would be looked up by itself, and there are thousands."""
    placement = Placement.fused((4096, 12), 1, (8, 4), 1, 2, [0])
    columns = Placed(torch.zeros(placement.local_shape), placement)
    rows = Placed(torch.zeros(1024, 12), Placement.cut((4096, 12), 0, 1, 4, [0]))
    read = [
        [(name, where) for name, parts in turn.items() for where, _ in parts]
        for turn in turns({"c": columns, "r": rows})
    ]
    everything, quarter = Rectangle((0,), (4096 * 12,)), Rectangle((1024 * 12,), (1024 * 12,))
    assert read == [[("r", quarter)], [("c", everything)], [("c", everything)]]


def test_everything_lies_under_its_name_at_its_full_shape(tmp_path: Path) -> None:
    run_on_ranks(write, 4, tmp_path, Layout(2, 2))
    shapes = stored_shapes(tmp_path)
    assert shapes["wqkv"] == shapes["moment.wqkv"] == (16, 10)
    assert shapes["scale"] == shapes["moment.scale"] == ()
    assert "none" not in shapes  # nothing to store
    metadata = FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    for name, entry in metadata.items():
        boxes = [Rectangle(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]  # type: ignore[union-attr]
        assert all(box.numel for box in boxes), name
        assert tiling_fault(shapes[name], boxes) is None, name
    plain = {name: torch.zeros_like(tensor) for name, tensor in wholes().items()}
    read_tensors(tmp_path, plain)  # and torch reads it as any other
    assert all(torch.equal(plain[name], tensor) for name, tensor in wholes().items())


def test_replicas_share_the_work(tmp_path: Path) -> None:
    shapes = [(300, 70), (7,), (500, 33), (2000,), (1, 5)]

    def write_replicated() -> None:
        write_tensors(tmp_path, {f"{n}": torch.ones(shape) for n, shape in enumerate(shapes)})

    run_on_ranks(write_replicated, 4)
    sizes = [(tmp_path / f"__{rank}_0.distcp").stat().st_size for rank in range(4)]
    assert max(sizes) < 1.2 * min(sizes)
    assert sum(sizes) < 1.4 * 4 * sum(torch.Size(shape).numel() for shape in shapes)
    read_tensors(tmp_path, again := {f"{n}": torch.zeros(shape) for n, shape in enumerate(shapes)})
    assert all(tensor.eq(1).all() for tensor in again.values())


@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=6),
    ranks=st.lists(st.integers(0, 20), min_size=1, max_size=5, unique=True),
)
def test_every_row_has_one_writer(shapes: list[tuple[int, ...]], ranks: list[int]) -> None:
    tensors = {
        str(n): Placed(torch.zeros(shape, dtype=torch.float64 if n % 2 else torch.int8), Placement.whole(shape, ranks))
        for n, shape in enumerate(shapes)
    }
    written: dict[str, list[Rectangle]] = defaultdict(list)
    sizes, items = [], 0
    for rank in ranks:
        parts = own_parts(cut(tensors), rank)
        size = 0
        for name, named in parts.items():
            for where, view in named:
                assert tuple(view.shape) == where.sizes
                written[name].append(where)
                size += view.nbytes
                items += 1
        sizes.append(size)
    for name, each in tensors.items():
        assert tiling_fault(each.placement.shape, written[name]) is None
    rows = [each.local[:1].nbytes if each.local.dim() else each.local.nbytes for each in tensors.values()]
    assert max(sizes) - min(sizes) <= 2 * max(rows, default=0) + 1
    assert items <= len(tensors) + len(ranks) - 1


def test_ranks_may_hold_shared_pieces_in_other_orders() -> None:
    """As key and value heads lie that a layout has put together otherwise: who writes what follows from where they are
    in the whole tensor."""
    spans = [Span(0, 1, (0, 1)), Span(4, 7, (0, 1)), Span(9, 10, (0, 1))]
    written = []
    for rank, order in enumerate([spans, spans[::-1]]):
        placement = Placement.joined((10, 3), 0, order)
        placed = Placed(torch.zeros(placement.local_shape), placement)
        written += [where for where, _ in own_parts(cut({"kv": placed}), rank)["kv"]]
    rest = [Rectangle((1, 0), (3, 3)), Rectangle((7, 0), (2, 3))]
    assert tiling_fault((10, 3), [*written, *rest]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_a_view_is_written_and_read_in_its_place(tmp_path: Path, dtype: torch.dtype) -> None:
    """torch's writer would copy it first, for the storage around it."""

    def body() -> None:
        flat = torch.arange(40).to(dtype)
        views = {"rows": flat[4:16].view(3, 4), "column": flat.view(10, 4)[:, 1:2], "one": flat[17]}
        for name, parts in own_tensors(here := placed(views), cut(here)).items():
            (item,) = parts.__create_write_items__(name, parts)
            there = parts.__get_tensor_shard__(item.index)
            assert torch.equal(there, views[name]) and there.data_ptr() == views[name].data_ptr()
            assert (there.untyped_storage().nbytes() == there.nbytes) == (name != "column")
        write_tensors(tmp_path, views)
        expected = flat.clone()
        for view in views.values():
            view.zero_()
        read_tensors(tmp_path, views)
        assert torch.equal(flat, expected)

    run_on_ranks(body, 1)
