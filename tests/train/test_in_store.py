"""Runs whose data, first weights and curve are in an object store: the same as on disk, to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from evo_core.checkpoint import load_model
from evo_core.errors import CheckpointError, ConfigError, DataError, UserError
from evo_core.storage.files import delete, link_tree, list_files, open_file, write_file
from evo_core.train.earlier_records import copy_records
from evo_core.weights import open_weights, write_weights
from tests.ranks import run_on_ranks
from tests.s3_server import READER_KEY, READER_SECRET, S3Server
from tests.train.jobs import curve, job, losses, run

pytestmark = pytest.mark.s3


@pytest.fixture
def root(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket; what is copied from it goes below tmp_path/cache."""
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "cache"))
    return f"s3://{s3.new_bucket()}"


def names(folder: str) -> list[str]:
    return [file.path for file in list_files(folder, lambda *what: None)]


def test_data_and_curve(root: str, tmp_path: Path) -> None:
    on_disk = job(tmp_path, data__valid_every=2, data__total_steps=4, ckpt__enable_save_ckpt=False)
    run(on_disk, tmp_path / "disk")
    for name in ("data", "valid"):
        link_tree(tmp_path / name, f"{root}/{name}")
    in_store = job(
        tmp_path,
        enable_tb=True,
        tensorboard_folder=f"{root}/board",
        data__train_folder=f"{root}/data",
        data__valid_folder=f"{root}/valid",
        data__valid_every=2,
        data__total_steps=4,
        ckpt__enable_save_ckpt=False,
    )
    run_on_ranks(lambda: run(in_store, tmp_path / "store"), 2)
    run(in_store, tmp_path / "again")
    assert losses(tmp_path / "again") == losses(tmp_path / "disk")
    assert losses(tmp_path / "store") == pytest.approx(losses(tmp_path / "disk"), rel=1e-12)
    held_out, expected = (
        [{k: v for k, v in record.items() if k.startswith("val/")} for record in curve(tmp_path / name)]
        for name in ("again", "disk")
    )
    assert held_out == expected
    assert any(held_out)
    assert len([path for path in (tmp_path / "cache" / "stores").iterdir() if path.suffix != ".lock"]) == 2
    boards = [path for run_ in ("store", "again") for path in (tmp_path / run_ / "tensorboard").iterdir()]
    assert names(f"{root}/board") == sorted(path.name for path in boards)

    copy_records(f"{root}/board", tmp_path / "later")
    assert {path.name: path.read_bytes() for path in (tmp_path / "later").iterdir()} == {
        path.name: path.read_bytes() for path in boards
    }
    with pytest.raises(ConfigError, match=r"elsewhere: resume_tb_folder: there is nothing here"):
        copy_records(f"{root}/elsewhere", tmp_path / "later")
    for path in boards:
        with open_file(f"{root}/board/{path.name}") as file:
            assert file.read() == path.read_bytes()


def test_first_weights(root: str, tmp_path: Path) -> None:
    run(job(tmp_path), tmp_path / "first")
    shutil.rmtree(tmp_path / "ckpt" / "8")
    link_tree(tmp_path / "ckpt", f"{root}/run/ckpt")
    write_file(f"{root}/run/ckpt/7/run.json", (tmp_path / "ckpt" / "6" / "run.json").read_bytes())
    expected = {}
    for number, path in enumerate((str(tmp_path / "ckpt"), f"{root}/run/ckpt", f"{root}/run/ckpt/6/")):
        ckpt = {
            "auto_resume": False,
            "save_ckpt_folder": f"local:{tmp_path / str(number)}",
            "load_ckpt_info": {"path": path, "content": "all", "ckpt_type": "evo"},
        }
        run(job(tmp_path, ckpt=ckpt), tmp_path / f"run-{number}")
        expected[path] = losses(tmp_path / f"run-{number}")
    assert len({tuple(each) for each in expected.values()}) == 1 and len(expected[path]) == 2
    model, _ = load_model(f"{root}/run/ckpt")
    assert_same(model, load_model(tmp_path / "ckpt")[0])
    write_weights(open_weights(tmp_path / "ckpt"), tmp_path / "hf", "hf")
    link_tree(tmp_path / "hf", f"{root}/hf")
    assert_same(load_model(f"{root}/hf")[0], load_model(tmp_path / "hf")[0])
    delete(f"{root}/run/ckpt/6/manifest.json")
    delete(f"{root}/run/ckpt/3/manifest.json")
    with pytest.raises(CheckpointError, match=r"run/ckpt: no complete checkpoint here"):
        load_model(f"{root}/run/ckpt")
    with pytest.raises(CheckpointError, match=r"/none: there is nothing here"):
        load_model(f"{root}/none")


def test_a_store_that_does_not_do_is_found_before_the_first_step(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"/nowhere: there is nothing here"):
        run(job(tmp_path, data__valid_folder=f"{root}/nowhere", data__valid_every=5), tmp_path / "a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    with pytest.raises(UserError, match=r"/board: tensorboard_folder: cannot be written: it may not be written with"):
        run(job(tmp_path, enable_tb=True, tensorboard_folder=f"{root}/board"), tmp_path / "b")
    assert not any(curve(tmp_path / name) for name in ("a", "b") if (tmp_path / name / "metrics.jsonl").exists())


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())
