"""What a run starts from, and what it says about it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.checkpoint import TrainState, load_model
from evo_core.errors import CheckpointError, ConfigError
from evo_core.train import train
from evo_core.train.run import run_folder
from evo_core.train.start import Start
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run

SCHEDULE = {"total_steps": 8, "warmup_ratio": 0.25, "eta_min": 1e-3}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder with the checkpoints 3, 6 and 8 of a finished run."""
    run(job(tmp_path, ckpt__save_ckpt_folder=str(tmp_path / "trained")), tmp_path / "first")
    return tmp_path / "trained"


def flip_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - b for b in content[middle : middle + 8])
    path.write_bytes(content)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder)[0].state_dict()


def test_an_incomplete_checkpoint_is_passed_over_and_its_step_saved_beside_it(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained / "8" / "manifest.json").unlink()
    result = run(job(tmp_path, ckpt__save_ckpt_folder=str(trained)), tmp_path / "first")
    said = capsys.readouterr().out
    assert f"{trained / '8'} is incomplete (no manifest.json): ignored" in said
    assert f"resuming from {trained / '6'}" in said
    assert result.checkpoint == trained / "8-2"
    assert [r["step"] for r in curve(tmp_path / "first")] == list(range(8))


def test_a_damaged_checkpoint_is_passed_over_with_the_reason(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(trained)
    flip_bytes(trained / "8" / "model" / "__0_0.distcp")
    (trained / "6" / "optimizer" / "__0_0.distcp").unlink()
    result = run(job(tmp_path, ckpt__save_ckpt_folder=str(trained)), tmp_path / "first")
    said = capsys.readouterr().out
    assert "do not have the digest they were written with: falling back" in said
    assert "optimizer/__0_0.distcp is missing: falling back" in said
    assert f"resuming from {trained / '3'}" in said
    assert result.checkpoint == trained / "8-2"
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(trained / "8-2").values(), strict=True))


def test_no_checkpoint_at_all_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(job(tmp_path, data__total_steps=1), tmp_path / "run")
    assert f"no complete checkpoint in {tmp_path / 'ckpt'}: from scratch" in capsys.readouterr().out


def test_auto_resume_does_not_read_load_ckpt_info_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = {"path": "local:/nowhere", "content": ["model"]}
    run(job(tmp_path, data__total_steps=1, ckpt__load_ckpt_info=info, ckpt__auto_resume=True), tmp_path / "run")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert "from scratch; load_ckpt_info (local:/nowhere) is not read: set auto_resume to False" in line


def test_all_ranks_go_on_in_the_folder_that_the_first_one_sees(tmp_path: Path) -> None:
    """On a disk that each machine has for itself the others do not see it."""
    TrainState(folder="/proc/self/cwd/run").write(tmp_path)
    (tmp_path / "0" / "run").mkdir(parents=True)
    (tmp_path / "1").mkdir()
    cfg = job(tmp_path)

    def body() -> str:
        os.chdir(tmp_path / str(dist.get_rank()))
        return str(run_folder(cfg, None, Start(tmp_path, ("all",), resumes=True)))

    assert run_on_ranks(body, 2) == ["/proc/self/cwd/run"] * 2


def test_a_folder_that_one_rank_cannot_make_ends_all_of_them(tmp_path: Path) -> None:
    for rank in "01":
        (tmp_path / rank).mkdir()
    (tmp_path / "1" / "run").write_text("a file")
    cfg = job(tmp_path)

    def body() -> str:
        os.chdir(tmp_path / str(dist.get_rank()))
        with pytest.raises(ConfigError) as caught:
            run_folder(cfg, Path("run"), None)
        return str(caught.value)

    (said,) = set(run_on_ranks(body, 2))
    assert "run: cannot be made: File exists" in said


def test_what_one_rank_cannot_load_ends_all_of_them(tmp_path: Path, trained: Path) -> None:
    """A copy that is cut on one machine, in the third file by name, of which every second one is compared there."""
    for rank in "01":
        shutil.copytree(trained / "8", tmp_path / rank / "ckpt")
    os.truncate(tmp_path / "1" / "ckpt" / "model" / "__0_0.distcp", 100)
    info = {"path": "local:/proc/self/cwd/ckpt", "content": ["model"]}
    cfg = job(
        tmp_path, ckpt__load_ckpt_info=info, ckpt__auto_resume=False, ckpt__save_ckpt_folder=str(tmp_path / "new")
    )

    def body() -> str:
        os.chdir(tmp_path / str(dist.get_rank()))
        with pytest.raises(CheckpointError) as caught:
            run(cfg, tmp_path / "run")
        return str(caught.value)

    (said,) = set(run_on_ranks(body, 2))
    assert "model/__0_0.distcp: damaged: has 100 bytes instead of" in said


def start_from(tmp_path: Path, path: Path, content: list[str], **changes: Any) -> list[Any]:
    info = {"path": f"local:{path}", "content": content}
    cfg = job(
        tmp_path,
        ckpt__auto_resume=False,
        ckpt__load_ckpt_info=info,
        ckpt__save_ckpt_folder=str(tmp_path / "second"),
        **changes,
    )
    run(cfg, tmp_path / "second_run")
    return curve(tmp_path / "second_run")


def test_weights_alone(tmp_path: Path, trained: Path) -> None:
    records = start_from(tmp_path, trained, ["model"])
    first = curve(tmp_path / "first")
    assert [r["step"] for r in records] == list(range(8))
    assert records[0]["loss"] < first[0]["loss"] - 0.1  # it knows what the first run learnt
    assert records[0]["lr"] == first[0]["lr"]  # and starts the schedule anew


def test_everything_goes_on_where_it_stopped(tmp_path: Path, trained: Path) -> None:
    records = start_from(tmp_path, trained / "3", ["all"])
    assert [r["loss"] for r in records] == [r["loss"] for r in curve(tmp_path / "first")[3:]]


def test_moments_without_the_place_in_the_data(tmp_path: Path, trained: Path) -> None:
    records = start_from(
        tmp_path, trained / "6", ["model", "optimizer", "scheduler"], data__total_steps=2, lr_scheduler=SCHEDULE
    )
    first = curve(tmp_path / "first")
    assert [r["step"] for r in records] == [0, 1]
    assert records[0]["lr"] == first[6]["lr"]


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_path_without_a_checkpoint_is_an_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no such checkpoint|no complete checkpoint"):
        start_from(tmp_path, tmp_path / place, ["model"])


def test_a_damaged_one_that_was_asked_for_is_an_error(tmp_path: Path, trained: Path) -> None:
    flip_bytes(trained / "8" / "model" / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"model/__0_0\.distcp: damaged: bytes 0 to \d+ do not have the digest"):
        start_from(tmp_path, trained, ["model"])


def test_another_model_is_refused(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has shape \[64, 16\] there and \[64, 32\] here"):
        start_from(tmp_path, trained, ["model"], model__hidden_size=32)
    with pytest.raises(CheckpointError, match="which this model does not have"):
        start_from(tmp_path, trained, ["model"], model__num_layers=1)
    with pytest.raises(CheckpointError, match="lacks "):
        start_from(tmp_path, trained, ["model"], model__num_layers=3)
    # Of a run's own nobody can allow that something lacks.
    with pytest.raises(CheckpointError, match=r"lacks layers\.2\.[^()]*$"):
        run(job(tmp_path, ckpt__save_ckpt_folder=str(trained), model__num_layers=3), tmp_path / "first")


def test_init_is_used_once_and_own_checkpoints_go_first(tmp_path: Path, trained: Path) -> None:
    cfg = job(tmp_path, data__total_steps=3)
    train(cfg, folder=tmp_path / "run", init=Start(trained, ("model",), resumes=False))
    first = curve(tmp_path / "run")
    assert first[0]["loss"] < curve(tmp_path / "first")[0]["loss"] - 0.1
    (tmp_path / "ckpt" / "3" / "manifest.json").unlink()
    longer = job(tmp_path, data__total_steps=4, lr_scheduler={"total_steps": 8})
    train(longer, folder=tmp_path / "run", init=Start(trained, ("model",), resumes=False))
    assert curve(tmp_path / "run")[0]["loss"] == first[0]["loss"]
    train(job(tmp_path, lr_scheduler={"total_steps": 8}), folder=tmp_path / "run", init=None)
    assert json.loads((tmp_path / "ckpt" / "8" / "manifest.json").read_text())["step"] == 8
