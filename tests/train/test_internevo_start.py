"""A run that goes on from a folder of InternEvo: its weights, its steps and tokens, and its place in the schedules."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from evo_core.checkpoint import TrainState, load_model
from evo_core.errors import CheckpointError
from evo_core.optim.schedules import Beta2Schedule, LearningRate
from evo_core.storage.files import link_tree
from evo_core.train import train
from evo_core.train.other_systems import refuse_to_resume
from evo_core.train.start import Start
from evo_core.weights import kind_of
from tests.ranks import run_on_ranks
from tests.s3_server import S3Server
from tests.train.jobs import curve, job, losses, run
from tests.train.test_foreign_start import made, theirs

SCHEDULE = {"total_steps": 20, "warmup_ratio": 0.2, "eta_min": 1e-3}


def going_on(folder: Path, path: Path, name: str = "ckpt", **changes: Any) -> Any:
    info = {"path": f"local:{path}", "content": ["model", "scheduler"], "ckpt_type": "internevo"}
    ckpt = {"auto_resume": False, "save_ckpt_folder": f"local:{folder / name}", "load_ckpt_info": info}
    ckpt |= {"enable_save_ckpt": changes.pop("ckpt__enable_save_ckpt", True)}
    settings = {"data__total_steps": 8, "lr_scheduler": SCHEDULE, "adam__adam_beta2_c": 0.8, **changes}
    return job(folder, **{"ckpt": ckpt, **settings})


def test_steps_tokens_and_schedules_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six batches are behind it and five updates: the next step is number 6, at the rate of the sixth update."""
    result = run(going_on(tmp_path, theirs(tmp_path / "6")), tmp_path / "run")
    assert result.step == 8
    assert result.checkpoint == tmp_path / "ckpt" / "8"
    lines = curve(tmp_path / "run")
    assert [line["step"] for line in lines] == [6, 7]
    assert [line["num_consumed_tokens"] for line in lines] == [7 * 128, 8 * 128]
    assert [line["inf_nan_skip_batches"] for line in lines] == [1, 1]
    # A line shows the rates of the next update.
    rate = LearningRate(lr=1e-2, total_steps=20, warmup_ratio=0.2, eta_min=1e-3)
    assert [line["lr"] for line in lines] == [rate(6), rate(7)]
    assert [line["adam_beta2"] for line in lines] == [Beta2Schedule(0.95, 0.8)(6), Beta2Schedule(0.95, 0.8)(7)]
    state = TrainState.read(result.checkpoint)
    assert (state.step, state.tokens, state.updates, state.moments, state.skipped_updates) == (8, 8 * 128, 7, 2, 1)
    said = capsys.readouterr().out
    assert f"{tmp_path / '6'}: going on at step 6, 768 tokens, 5 updates into the schedules" in said
    assert "in its run and" not in said


def test_the_first_update_is_at_the_rate_that_was_next(tmp_path: Path) -> None:
    """A rate of zero there leaves the weights as they were; one update further or less would not."""
    theirs(tmp_path / "6")
    rate = {"total_steps": 100, "init_steps": 6, "warmup_ratio": 0.5, "eta_min": 0.0}
    still = going_on(tmp_path, tmp_path / "6", data__total_steps=7, lr_scheduler=rate, adam__weight_decay=0.0)
    moved = going_on(tmp_path, tmp_path / "6", "moved", data__total_steps=8, lr_scheduler=rate, adam__weight_decay=0.0)
    before = made(tmp_path).state_dict()["norm.weight"]
    after = [load_model(run(cfg, tmp_path / "run").checkpoint)[0].state_dict()["norm.weight"] for cfg in (still, moved)]
    assert after[0].equal(before)
    assert not after[1].equal(before)


def test_the_data_are_this_runs_from_that_batch_on(tmp_path: Path) -> None:
    """Batch 6 of the run's own order, as a run has it that began at step 0; at two ranks as at one."""
    theirs(tmp_path / "6")
    run(job(tmp_path, ckpt__enable_save_ckpt=False), tmp_path / "whole")
    cfg = going_on(tmp_path, tmp_path / "6", ckpt__enable_save_ckpt=False)
    run(cfg, tmp_path / "run")
    run_on_ranks(lambda: (train(cfg, folder=tmp_path / "ranks"), dist.barrier()), 2)
    assert losses(tmp_path / "ranks") == pytest.approx(losses(tmp_path / "run"), rel=1e-12)
    shown = ("num_samples_in_batch", "largest_length", "smallest_batch")
    whole = [[line[name] for name in shown] for line in curve(tmp_path / "whole")]
    assert [[line[name] for name in shown] for line in curve(tmp_path / "run")] == whole[6:]


def test_of_the_model_alone_a_run_begins_at_step_0(tmp_path: Path) -> None:
    theirs(tmp_path / "6")
    for name in ("context.pt", "schedulder.pt"):
        (tmp_path / "6" / name).unlink()
    cfg = going_on(tmp_path, tmp_path / "6", data__total_steps=1)
    info = cfg.ckpt.load_ckpt_info.model_copy(update={"content": ("model",)})
    cfg = cfg.model_copy(update={"ckpt": cfg.ckpt.model_copy(update={"load_ckpt_info": info})})
    assert run(cfg, tmp_path / "run").step == 1


def test_another_schedule_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"total_steps": 40, "warmup_ratio": 0.1, "eta_min": 1e-4}
    run(going_on(tmp_path, theirs(tmp_path / "6"), lr_scheduler=other, adam__lr=2e-2), tmp_path / "run")
    said = capsys.readouterr().out
    for line in (
        "adam.lr is 0.01 in its run and 0.02 in this one",
        "lr_scheduler.total_steps is 20 in its run and 40 in this one",
        "lr_scheduler.eta_min is 0.001 in its run and 0.0001 in this one",
    ):
        assert line in said
    assert "warm-up is" not in said


def test_a_run_with_nothing_left_or_a_position_of_its_own_is_refused(tmp_path: Path) -> None:
    theirs(tmp_path / "6")
    with pytest.raises(CheckpointError, match=r"data\.total_steps: 6: 6 steps are behind the checkpoint"):
        run(going_on(tmp_path, tmp_path / "6", data__total_steps=6), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"lr_scheduler\.last_epoch: 5: .*which would be added \(leave it out\)"):
        run(going_on(tmp_path, tmp_path / "6", lr_scheduler=SCHEDULE | {"last_epoch": 5}), tmp_path / "run")


def resumed(folder: Path, root: Path, **changes: Any) -> Any:
    ckpt = {"auto_resume": True, "save_ckpt_folder": f"local:{root}"}
    return job(folder, **{"ckpt": ckpt, "data__total_steps": 8, "lr_scheduler": SCHEDULE, **changes})


@pytest.mark.parametrize("root", [".", "6", "snapshots"])
def test_auto_resume_in_a_folder_of_internevo_is_refused_with_what_to_write(
    tmp_path: Path, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs(tmp_path / "theirs" / "6")
    if root == "snapshots":
        shutil.move(tmp_path / "theirs" / "6", tmp_path / "theirs" / "snapshot" / "0")
    save_folder = tmp_path / "theirs" / ("." if root == "snapshots" else root)
    newest = tmp_path / "theirs" / ("snapshot/0" if root == "snapshots" else "6")
    with pytest.raises(CheckpointError) as caught:
        run(resumed(tmp_path, save_folder), tmp_path / "run")
    said = str(caught.value)
    assert said.startswith(f"{save_folder}: ckpt.auto_resume: holds a checkpoint of InternEvo ({newest})")
    assert f'write auto_resume: false and load_ckpt_info: {{path: "{newest}", content: ["model", "scheduler"]' in said
    assert "is incomplete" not in capsys.readouterr().out


def test_what_this_run_saved_beside_them_is_resumed(tmp_path: Path) -> None:
    """As the message says to write, into the same folder; from then on auto_resume has something to go on from."""
    root = tmp_path / "theirs"
    theirs(root / "6")
    run(going_on(tmp_path, root / "6", "theirs"), tmp_path / "run")
    assert run(resumed(tmp_path, root, data__total_steps=10), tmp_path / "run").checkpoint == root / "10"
    assert [line["step"] for line in curve(tmp_path / "run")] == [6, 7, 8, 9]
    assert kind_of(root) is None  # a folder of ours now, in which InternEvo's checkpoints are as they were
    assert load_model(root)[0].state_dict()["norm.weight"].equal(load_model(root / "10")[0].state_dict()["norm.weight"])


def test_retention_leaves_internevos_alone(tmp_path: Path) -> None:
    """With --init the run may save beside them under auto_resume from its first start on."""
    root = tmp_path / "theirs"
    theirs(root / "6")
    before = {path.name for path in (root / "6").iterdir()}
    start = Start(root / "6", ("model", "scheduler"), resumes=False)
    cfg = resumed(tmp_path, root, data__total_steps=10)
    cfg = cfg.model_copy(update={"ckpt": cfg.ckpt.model_copy(update={"keep": 1, "checkpoint_every": 1})})
    assert train(cfg, folder=tmp_path / "run", init=start).checkpoint == root / "10"
    assert {path.name for path in (root / "6").iterdir()} == before
    assert {path.name for path in root.iterdir()} == {"6", "10", "data", "valid"}
    assert train(cfg, folder=tmp_path / "run", init=start).checkpoint == root / "10"


def test_a_folder_that_internevo_did_not_complete_is_none_of_its_checkpoints(tmp_path: Path) -> None:
    theirs(tmp_path / "theirs" / "6")
    (tmp_path / "theirs" / "6" / "6.step").unlink()
    assert run(resumed(tmp_path, tmp_path / "theirs", data__total_steps=1), tmp_path / "run").step == 1


@pytest.mark.s3
def test_from_a_store(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save folder there means its newest checkpoint; the optimizer's files are not fetched."""
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "cache"))
    theirs(tmp_path / "theirs" / "6")
    (tmp_path / "theirs" / "6" / "optimizer_tp0_pp0_zo0.pt").write_bytes(b"large")
    run(going_on(tmp_path, tmp_path / "theirs", "disk"), tmp_path / "run")
    there = f"s3://{s3.new_bucket()}/llm_ckpts"
    link_tree(tmp_path / "theirs", there)
    cfg = going_on(tmp_path, tmp_path)
    info = cfg.ckpt.load_ckpt_info.model_copy(update={"path": there})
    cfg = cfg.model_copy(update={"ckpt": cfg.ckpt.model_copy(update={"load_ckpt_info": info})})
    run(cfg, tmp_path / "store-run")
    assert losses(tmp_path / "store-run") == losses(tmp_path / "run")
    copied = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert {"model_tp0_pp0.pt", "context.pt", "schedulder.pt"} <= copied
    assert "optimizer_tp0_pp0_zo0.pt" not in copied
    refuse_to_resume(f"{there}-new")
    with pytest.raises(CheckpointError, match=f"{there}: ckpt.auto_resume: holds a checkpoint of InternEvo .{there}/6"):
        refuse_to_resume(there)
