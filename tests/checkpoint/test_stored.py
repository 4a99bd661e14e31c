"""Metadata of pieces that somebody changed: what does not make up its tensors, or names code, is refused in a line."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint.tensors import read_tensors, stored_shapes, write_tensors
from evo_core.errors import CheckpointError
from tests.checkpoint.layouts import Layout, held, wholes
from tests.ranks import run_on_ranks

LAYOUT = Layout(2, 2)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    run_on_ranks(lambda: write_tensors(folder, held(LAYOUT, dist.get_rank(), filled=True)), LAYOUT.ranks)
    return folder


class Touch:
    """Unpickled as it is meant to be, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def offsets(*where: Any) -> Callable[[Any, Any], None]:
    def change(entry: Any, metadata: Any) -> None:
        entry.chunks[1].offsets = torch.Size(where)

    return change


def sizes(*sizes: Any) -> Callable[[Any, Any], None]:
    def change(entry: Any, metadata: Any) -> None:
        entry.chunks[1].sizes = torch.Size(sizes)

    return change


def in_place_of_sizes(value: Any) -> Callable[[Any, Any], None]:
    def change(entry: Any, metadata: Any) -> None:
        entry.chunks[1].sizes = value

    return change


def one_less(entry: Any, metadata: Any) -> None:
    del entry.chunks[1]


def one_twice(entry: Any, metadata: Any) -> None:
    entry.chunks[1] = entry.chunks[0]


def no_place(entry: Any, metadata: Any) -> None:
    at = entry.chunks[1].offsets
    gone = [index for index in metadata.storage_data if index.fqn == "moment.wqkv" and index.offset == at]
    del metadata.storage_data[gone[0]]


def larger(entry: Any, metadata: Any) -> None:
    entry.size = torch.Size([16, 11])


CHANGES: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "overlapping": (offsets(0, 0), "overlap"),
    "twice": (one_twice, "overlap"),
    "reaching out": (offsets(15, 0), "reaches out"),
    "before the beginning": (offsets(-1, 0), "in place of sizes"),
    "of fewer dimensions": (offsets(0), "no tensors can be read"),
    "of no whole numbers": (in_place_of_sizes((2.0, 10)), "in place of sizes"),
    "of no numbers": (in_place_of_sizes("ab"), "in place of sizes"),
    "without rows": (sizes(0, 10), "elements are missing"),
    "huge": (sizes(2**40, 2**40), "reaches out"),
    "gone": (one_less, "elements are missing"),
    "without a place": (no_place, "does not say where a part of moment.wqkv lies"),
    "of a larger tensor": (larger, "elements are missing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_pieces_that_do_not_make_up_their_tensor_are_refused(good: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "pieces"))
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change, message = CHANGES[name]
    change(metadata.state_dict_metadata["moment.wqkv"], metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    for read in (stored_shapes, lambda folder: read_tensors(folder, {"wo": torch.zeros(10, 8)})):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["offsets", "sizes"])
def test_no_code_runs_from_where_a_piece_is_described(good: Path, tmp_path: Path, place: str) -> None:
    folder, mark = Path(shutil.copytree(good, tmp_path / "pieces")), tmp_path / "EXECUTED"
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    setattr(metadata.state_dict_metadata["moment.wqkv"].chunks[0], place, Touch(mark))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="was not run"):
        stored_shapes(folder)
    assert not mark.exists()


def test_a_cut_file_is_named(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "pieces"))
    file = folder / "__3_0.distcp"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"__3_0\.distcp: is too short for its part of"):
        read_tensors(folder, {"wqkv": torch.zeros(16, 10)})


def test_a_part_that_lies_where_a_smaller_one_should_is_not_repeated(tmp_path: Path) -> None:
    run_on_ranks(lambda: write_tensors(tmp_path / "few", {"one": torch.ones(1, 8), "four": torch.ones(4, 8)}), 1)
    metadata = pickle.loads((tmp_path / "few" / ".metadata").read_bytes())
    one, four = sorted(metadata.storage_data, key=lambda index: index.fqn, reverse=True)
    places = metadata.storage_data
    places[one], places[four] = places[four], places[one]
    (tmp_path / "few" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"four has a part of \[1, 8\], not of \[4, 8\]"):
        read_tensors(tmp_path / "few", {"four": torch.zeros(4, 8)})


def test_a_good_one_is_read(good: Path) -> None:
    read_tensors(good, tensors := {"moment.wqkv": torch.zeros(16, 10)})
    assert torch.equal(tensors["moment.wqkv"], -wholes()["wqkv"])
