"""What a rank asks of a store to load its part of a checkpoint: files that have some of it, and of these the blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint.records import BLOCK, FileRecord
from evo_core.checkpoint.stored import Reader
from evo_core.checkpoint.tensors import read_tensors, write_tensors
from evo_core.placement import Placed, Placement
from tests.ranks import run_on_ranks
from tests.s3_requests import Requests, counted
from tests.s3_server import S3Server

pytestmark = pytest.mark.s3

MB = 1 << 20
SHAPE = (4096, 2048)  # 32 MB in float32
NAMES = ("a", "b", "c")
WRITERS = 4


def whole(name: str) -> torch.Tensor:
    return torch.arange(SHAPE[0] * SHAPE[1], dtype=torch.float32).view(SHAPE) + NAMES.index(name)


def rows(index: int, count: int) -> Placement:
    return Placement.cut(SHAPE, 0, index, count, [index])


@pytest.fixture(scope="module")
def stored(_s3_server: S3Server) -> Iterator[tuple[str, dict[str, FileRecord]]]:
    """A folder of tensors of 96 MB, of which each of four ranks has written a quarter of the rows."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _s3_server.environment.items():
            patch.setenv(name, value)
        folder = f"s3://{_s3_server.new_bucket()}/run/1/model"

        def write() -> dict[str, FileRecord]:
            tensors = {}
            for name in NAMES:
                tensors[name] = Placed(torch.empty(SHAPE[0] // WRITERS, SHAPE[1]), rows(dist.get_rank(), WRITERS))
                tensors[name].fill(whole(name))
            return dict(write_tensors(folder, tensors))

        records: dict[str, FileRecord] = {}
        for own in run_on_ranks(write, WRITERS):
            records |= own
        yield folder, records


@contextmanager
def read(
    stored: tuple[str, dict[str, FileRecord]], placement: Placement, names: tuple[str, ...] = NAMES
) -> Iterator[Requests]:
    """What is asked for to read tensors, whose values are checked."""
    folder, records = stored
    tensors = {name: Placed(torch.zeros(placement.local_shape), placement) for name in names}
    with counted(folder) as requests:
        read_tensors(Reader(folder, records), tensors)
    for name, each in tensors.items():
        for piece, values in each.pieces():
            assert torch.equal(values, piece.where.of(whole(name))), name
    requests.read = type(requests.read)({key.rpartition("/")[2]: size for key, size in requests.read.items()})
    del requests.read[".metadata"]
    yield requests


LAYOUTS = {
    "the same rank": (rows(1, 4), [1]),
    "one of two": (rows(1, 2), [2, 3]),
    "one of eight": (rows(3, 8), [1]),
    "one of three": (rows(1, 3), [1, 2]),
    "one of four, by columns": (Placement.cut(SHAPE, 1, 1, 4, [1]), [0, 1, 2, 3]),
}


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_reads_the_files_that_have_its_rows_and_each_block_once(
    stored: tuple[str, dict[str, FileRecord]], layout: str
) -> None:
    placement, writers = LAYOUTS[layout]
    with read(stored, placement) as requests:
        sizes = {f"__{writer}_0.distcp": stored[1][f"__{writer}_0.distcp"].size for writer in writers}
        assert requests.read == sizes
        blocks = sum(-(-size // BLOCK) for size in sizes.values())
        assert requests.calls == {"GetObject": blocks + 1, "HeadObject": len(sizes)}


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("name", NAMES)
def test_of_a_file_only_the_blocks_of_what_is_wanted_are_read(
    stored: tuple[str, dict[str, FileRecord]], name: str
) -> None:
    """Of 24 MB of a file, the 8 MB of one tensor lie in one or two blocks of 16 MiB."""
    with read(stored, rows(1, 4), (name,)) as requests:
        (size,) = requests.read.values()
        assert 8 * MB <= size <= {"a": 16 * MB, "c": 9 * MB}.get(name, 25 * MB)
