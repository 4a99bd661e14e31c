"""Saves behind the training: what is written is what was there when it was asked for, in memory that is used again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint.agreement import check_agreement
from evo_core.checkpoint.background import BackgroundSaves
from evo_core.checkpoint.staging import HostCopies, Staged, stage
from evo_core.checkpoint.tensors import placed, read_tensors, write_parts
from evo_core.errors import CheckpointError
from evo_core.parallel.collectives import RankFailed, failing_together, on_first
from evo_core.placement import Placed, Placement
from tests.checkpoint.layouts import LAYOUTS, Layout, held
from tests.ranks import run_on_ranks


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_written_is_what_was_there(tmp_path: Path, layout: Layout) -> None:
    def body() -> None:
        saves, tensors = BackgroundSaves(), held(layout, dist.get_rank(), filled=True)
        for number in range(2):

            def write(staged: Staged, group: dist.ProcessGroup, folder: Path = tmp_path / str(number)) -> Path:
                check_agreement(staged.described, group)
                write_parts(folder, staged.parts["model"], group)
                return folder

            saves.start({"model": tensors}, write)
            for each in tensors.values():  # training goes on, and its ranks talk to each other
                dist.all_reduce(torch.ones(1000))
                each.local.add_(1)
            assert saves.wait() == tmp_path / str(number)
            assert saves.wait() is None
        before = held(layout, dist.get_rank(), filled=True)
        for number in range(2):
            read = held(layout, dist.get_rank(), filled=False)
            read_tensors(tmp_path / str(number), read)
            for name, each in read.items():
                assert torch.equal(each.local, before[name].local + number), (number, name)

    run_on_ranks(body, layout.ranks)


def test_copies_are_what_the_rank_writes_and_are_used_again() -> None:
    def body() -> tuple[int, int]:
        layout = Layout(1, 1, 2)
        tensors, copies = held(layout, dist.get_rank(), filled=True), HostCopies()
        places = []
        for _ in range(2):
            staged = stage({"model": tensors}, copies)
            parts = [values for each in staged.parts["model"].values() for _, values in each.rectangles()]
            places.append([values.data_ptr() for values in parts])
        assert places[0] == places[1]
        return copies.nbytes, sum(each.local.nbytes for each in tensors.values())

    own, whole = zip(*run_on_ranks(body, 2), strict=True)
    assert sum(own) == whole[0] == whole[1]


@pytest.mark.parametrize("drifted", [None, 0, 1, 2, 3])
def test_what_is_compared_is_what_was_there(drifted: int | None) -> None:
    """Two ranks hold four rows alike, of which each writes two, and training changes them before they are compared."""

    def body() -> str:
        values = torch.arange(8.0).view(4, 2)
        if drifted is not None and dist.get_rank() == 1:
            values[drifted, 0] += 1
        staged = stage({"model": {"w": Placed(values, Placement.whole((4, 2), range(2)))}}, HostCopies())
        values.add_(dist.get_rank() + 1)
        try:
            check_agreement(staged.described)
        except CheckpointError as error:
            return str(error)
        return ""

    (said,) = set(run_on_ranks(body, 2))
    assert ("model/w has other values on rank 0 than on rank 1" in said) == (drifted is not None)


def test_copies_of_any_type_and_form() -> None:
    def body() -> None:
        wide = torch.arange(24).view(4, 6)
        tensors = {
            "column": wide[:, 1:3], "bf16": wide.bfloat16(), "bool": wide > 5, "complex": wide.to(torch.complex64),
            "parameter": torch.nn.Parameter(wide.float()), "scalar": torch.tensor(3.5, dtype=torch.float64),
        }  # fmt: skip
        copies = HostCopies()
        for _ in range(2):
            for name, each in stage({"model": placed(tensors)}, copies).parts["model"].items():
                ((_, values),) = each.rectangles()
                assert torch.equal(values, tensors[name]) and values.dtype == tensors[name].dtype, name
            wide.add_(1)

    run_on_ranks(body, 1)


def test_copies_take_the_memory_of_what_is_copied_and_no_more() -> None:
    def body() -> tuple[int, int, int]:
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        # Each buffer is larger than what the C library would give out of memory that was in use before (32 MiB).
        tensors = {str(n): torch.ones(200_000 + n, dtype=dtypes[n % 3]) for n in range(300)}
        stage({"model": placed({"0": tensors["0"]})}, HostCopies())  # imports what it needs
        copies, before = HostCopies(), resident_bytes()
        staged = stage({"model": placed(tensors)}, copies)
        grown = resident_bytes() - before
        parts = [values for each in staged.parts["model"].values() for _, values in each.rectangles()]
        assert len({values.untyped_storage().data_ptr() for values in parts}) == len(dtypes)
        return copies.nbytes, sum(tensor.nbytes for tensor in tensors.values()), grown

    ((own, whole, grown),) = run_on_ranks(body, 1)
    assert own == whole
    # Not as exactly from below: what the process had and does not need any more, the system may take back meanwhile.
    assert 0.5 * whole < grown < 1.1 * whole


def resident_bytes() -> int:
    """Of memory that is no file's: pages of those come and go as the machine needs room."""
    found = re.search(r"^Anonymous: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def test_a_save_is_tried_twice_and_then_told_on_every_rank(tmp_path: Path) -> None:
    def body() -> int:
        saves, tensors = BackgroundSaves(), held(Layout(1, 2), dist.get_rank(), filled=True)
        tries = 0

        def write(staged: Staged, group: dist.ProcessGroup) -> Path:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise CheckpointError("no room", file=tmp_path)
            return tmp_path

        saves.start({"model": tensors}, write)
        with pytest.raises(CheckpointError, match="no room"):
            saves.wait()
        assert tries == 2
        saves.start({"model": tensors}, write)  # and the next one is tried as if nothing had happened
        assert saves.wait() == tmp_path
        return tries

    assert run_on_ranks(body, 2) == [4, 4]


def test_what_is_no_mistake_of_the_user_fails_on_every_rank_too(tmp_path: Path) -> None:
    def body() -> tuple[str, str]:
        saves, tensors = BackgroundSaves(), held(Layout(1, 2), dist.get_rank(), filled=True)
        tries = 0

        def write(staged: Staged, group: dist.ProcessGroup) -> Path:
            nonlocal tries
            tries += 1
            with failing_together(group):
                if tries <= 2 and dist.get_rank() == 1:
                    raise MemoryError("none left")
            return on_first(lambda: tmp_path, group)

        saves.start({"model": tensors}, write)
        with pytest.raises(RankFailed) as caught:
            saves.wait()
        saves.start({"model": tensors}, write)
        assert saves.wait() == tmp_path
        return str(caught.value), type(caught.value.__cause__).__name__

    told = "rank 1: MemoryError: none left"
    assert run_on_ranks(body, 2) == [(told, "NoneType"), (told, "MemoryError")]


def test_a_rank_that_failed_without_a_word_to_the_others_must_end(tmp_path: Path) -> None:
    def body() -> str:
        saves, tensors = BackgroundSaves(), held(Layout(1, 2), dist.get_rank(), filled=True)

        def write(staged: Staged, group: dist.ProcessGroup) -> Path:
            if dist.get_rank() == 1:
                raise ValueError("a bug")
            dist.barrier(group)
            return tmp_path

        saves.check()
        saves.start({"model": tensors}, write)
        if dist.get_rank() == 0:
            return "waits"
        saves.settle()
        for stop in (saves.check, saves.wait, saves.check):
            with pytest.raises(ValueError, match="a bug"):
                stop()
        return "ends"

    assert run_on_ranks(body, 2) == ["waits", "ends"]
