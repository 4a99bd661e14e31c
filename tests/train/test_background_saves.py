"""With ``ckpt.async_upload`` the same run and the same checkpoints, each whole before the run goes past the next."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint import folder as folders
from evo_core.checkpoint import saving
from evo_core.checkpoint.manifest import read_manifest
from evo_core.checkpoint.tensors import read_tensors, stored_shapes
from evo_core.checkpoint.train_state import TrainState
from evo_core.errors import CheckpointError, DataError
from tests.ranks import run_on_ranks
from tests.train.jobs import before_each_step, job, losses, run

CHANGES: dict[str, Any] = {"model__dtype": "torch.bfloat16", "ckpt__checkpoint_every": 2, "ckpt__oss_snapshot_freq": 3}

ISP = {"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 2, "overlap": True, "memory_pool": True}}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {name: torch.empty(shape, dtype=torch.float64) for name, shape in stored_shapes(folder).items()}
    read_tensors(folder, tensors)
    return tensors


@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param({"tensor": 1}, id="data"),
        pytest.param({"tensor": 2}, id="mtp", marks=pytest.mark.slow),
        pytest.param(ISP, id="isp"),
    ],
)
def test_they_change_nothing_but_when_a_step_goes_on(tmp_path: Path, parallel: dict[str, Any]) -> None:
    def body(name: str) -> Path:
        place = {"ckpt__save_ckpt_folder": f"local:{tmp_path / name}", "ckpt__async_upload": name == "behind"}
        cfg = job(tmp_path, parallel=parallel, **CHANGES, **place)
        return run(cfg, tmp_path / f"{name}_run").checkpoint

    for name in ("within", "behind"):
        assert run_on_ranks(body, 2, name) == [tmp_path / name / "8"] * 2
    assert losses(tmp_path / "behind_run") == losses(tmp_path / "within_run")
    saved = sorted(path.parent.relative_to(tmp_path / "within") for path in tmp_path.glob("within/**/manifest.json"))
    assert [str(folder) for folder in saved] == ["2", "4", "6", "8", "snapshot/3"]
    for folder in saved:
        there, here = tmp_path / "within" / folder, tmp_path / "behind" / folder
        assert read_manifest(here).files.keys() == read_manifest(there).files.keys()
        was, now = TrainState.read(there), TrainState.read(here)
        was.folder = now.folder
        assert now == was
        for part in ("model", "optimizer"):
            expected, found = stored(there / part), stored(here / part)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_that_is_told_to_end_waits_for_its_last_one(tmp_path: Path) -> None:
    cfg = job(tmp_path, ckpt__async_upload=True, ckpt__stop_file_path=str(tmp_path / "stop"), **CHANGES)

    def body() -> tuple[int, Path]:
        before_each_step(lambda step: (tmp_path / "stop").write_text("3") if step == 2 else None)
        result = run(cfg, tmp_path / "run")
        return result.step, result.checkpoint

    assert run_on_ranks(body, 1) == [(3, tmp_path / "ckpt" / "3")]
    assert read_manifest(tmp_path / "ckpt" / "3").step == 3


def test_a_run_that_ends_with_an_error_leaves_its_last_one_complete(tmp_path: Path) -> None:
    cfg = job(tmp_path, ckpt__async_upload=True, **CHANGES)

    def body() -> bool:
        failing, write_parts = threading.Event(), saving.write_parts

        def waits(*args: Any) -> Any:
            failing.wait()
            return write_parts(*args)

        def fails(step: int) -> None:
            if step == 2:
                failing.set()
                raise DataError("a damaged shard")

        saving.write_parts = waits
        before_each_step(fails)
        with pytest.raises(DataError, match="a damaged shard"):
            run(cfg, tmp_path / "run")
        return (tmp_path / "ckpt" / "2" / "manifest.json").exists()

    assert run_on_ranks(body, 2) == [True, True]


def test_a_lost_one_costs_neither_the_next_one_nor_the_runs_end(tmp_path: Path) -> None:
    cfg = job(tmp_path, ckpt__async_upload=True, **CHANGES)

    def body() -> tuple[list[str], int]:
        create = folders.create
        steps: list[int] = []

        def refuses(root: Path, step: int, *args: Any, **options: Any) -> Path:
            if step == 2:
                raise CheckpointError("no room", file=root)
            return create(root, step, *args, **options)

        folders.create = refuses
        before_each_step(steps.append)
        with pytest.raises(CheckpointError, match="no room"):
            run(cfg, tmp_path / "run")
        whole = [path.parent.name for path in tmp_path.glob("ckpt/**/manifest.json")]
        return whole, steps[-1]

    assert run_on_ranks(body, 2) == [(["3"], 2)] * 2  # the snapshot after the third step is the next save
    result = run_on_ranks(lambda: run(cfg, tmp_path / "run").step, 2)
    assert result == [8, 8]


def test_a_rank_whose_writing_failed_by_itself_ends_after_the_step(tmp_path: Path) -> None:
    """The others' threads wait for it, and would until the next save."""
    cfg = job(tmp_path, ckpt__async_upload=True, ckpt__checkpoint_every=2)

    def body() -> None:
        check_agreement = saving.check_agreement

        def fails(*args: Any) -> None:
            if dist.get_rank() == 1:
                raise ValueError("a bug")
            check_agreement(*args)

        def note(step: int) -> None:
            if dist.get_rank() == 1:
                for thread in threading.enumerate():
                    if thread.name == "checkpoint":
                        thread.join()
                (tmp_path / f"step-{step}").touch()

        saving.check_agreement = fails
        before_each_step(note)
        run(cfg, tmp_path / "run")

    with pytest.raises(RuntimeError, match=r"rank 1 failed:(?s:.*)ValueError: a bug"):
        run_on_ranks(body, 2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-0", "step-1", "step-2"]
