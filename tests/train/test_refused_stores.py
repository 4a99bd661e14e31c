"""What a store refuses ends a run in one line, before the first step if that can be known. What was saved is whole."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint import saving
from evo_core.data import Batch, Prefetch
from evo_core.errors import UserError
from evo_core.train import run as run_module
from tests.disks import fill, small_disk
from tests.s3_proxy import Proxy, broken_network
from tests.s3_server import READER_KEY, READER_SECRET, S3Server
from tests.train.jobs import job, losses, run
from tests.train.watched import Bucket

pytestmark = pytest.mark.s3

WHEN = pytest.mark.parametrize("behind", [False, True], ids=["in the step", "in the background"])


@pytest.fixture
def saves(s3: S3Server) -> Bucket:
    return Bucket(s3)


def saved(saves: Bucket, name: str) -> None:
    """Wait until a checkpoint is complete: in the background it may not be some steps later."""
    deadline = time.monotonic() + 60
    while name not in saves.complete():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Have the next runs of this process do something before a step."""
    draw = Prefetch.batch

    def batch(self: Prefetch, number: int) -> Batch:
        if number == step:
            act()
        return draw(self, number)

    monkeypatch.setattr(Prefetch, "batch", batch)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the store does not take these credentials"),
        ({"S3_ACCESS_KEY_ID": "nobody", "S3_SECRET_ACCESS_KEY_ID": "wrong"}, "does not take these credentials"),
        ({"AWS_ACCESS_KEY_ID": READER_KEY, "AWS_SECRET_ACCESS_KEY": READER_SECRET}, "it may not be written with these"),
        ({"AWS_ACCESS_KEY_ID": ""}, "there are no credentials for this store"),
    ],
    ids=["a wrong secret", "wrong keys of its own", "no right to write", "no keys"],
)
def test_keys(
    tmp_path: Path, saves: Bucket, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], said: str
) -> None:
    cfg = job(tmp_path, ckpt__save_ckpt_folder=saves.location)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said) as error:
        run(cfg, tmp_path / "run")
    assert saves.location in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_is_not_there(tmp_path: Path, saves: Bucket) -> None:
    cfg = job(tmp_path, ckpt__save_ckpt_folder=saves.location.replace(saves.name, "nowhere"))
    with pytest.raises(UserError, match=r"/runs/ckpt: .*there is no bucket nowhere"):
        run(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@WHEN
def test_a_right_to_write_that_is_lost(
    tmp_path: Path, saves: Bucket, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    cfg = job(tmp_path, ckpt__save_ckpt_folder=saves.location, ckpt__async_upload=behind)

    def lose() -> None:
        saved(saves, "3")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)

    before_step(monkeypatch, 5, lose)
    with pytest.raises(UserError, match=r"no checkpoint can be saved: it may not be written with these credentials"):
        run(cfg, tmp_path / "run")
    assert saves.complete() == {"3"}


@pytest.fixture
def network(s3: S3Server) -> Iterator[Proxy]:
    with broken_network(s3.endpoint) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "behind",
    [pytest.param(False, id="in the step"), pytest.param(True, id="in the background", marks=pytest.mark.slow)],
)
def test_a_store_that_stops_answering_in_a_save(
    tmp_path: Path, saves: Bucket, network: Proxy, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    run(job(tmp_path, ckpt__enable_save_ckpt=False), tmp_path / "undisturbed")
    monkeypatch.setenv("EVO_S3_PATIENCE", "1")
    place = f"boto3:s3://{saves.name}.{network.address}/runs/ckpt"
    cfg = job(tmp_path, ckpt__save_ckpt_folder=place, ckpt__async_upload=behind)
    fill = saving._fill

    def falls_silent(folder: Any, *args: Any) -> None:
        network.silent = str(folder).endswith("/6")
        fill(folder, *args)

    monkeypatch.setattr(saving, "_fill", falls_silent)
    with pytest.raises(UserError, match=r"/ckpt.*: .*the store gave no good answer for 1 s") as e:
        run(cfg, tmp_path / "run")
    assert "\n" not in str(e.value)
    network.silent = False
    assert saves.complete() == {"3"}
    saves.check()
    monkeypatch.setattr(saving, "_fill", fill)
    run(cfg, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")
    assert saves.begun() == saves.complete()


def test_a_store_that_stops_answering_in_a_load(
    tmp_path: Path, saves: Bucket, network: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVO_S3_PATIENCE", "1")
    place = f"boto3:s3://{saves.name}.{network.address}/runs/ckpt"
    cfg = job(tmp_path, ckpt__save_ckpt_folder=place, data__total_steps=3)
    run(cfg, tmp_path / "run")
    cfg = job(tmp_path, ckpt__save_ckpt_folder=place, data__total_steps=6)
    take_start = run_module.take_start

    def falls_silent(*args: Any) -> Any:
        network.silent = True
        return take_start(*args)

    monkeypatch.setattr(run_module, "take_start", falls_silent)
    with pytest.raises(UserError, match=r"/runs/ckpt/3.*the store gave no good answer for 1 s") as error:
        run(cfg, tmp_path / "run")
    assert "\n" not in str(error.value)
    network.silent = False
    monkeypatch.setattr(run_module, "take_start", take_start)
    assert run(cfg, tmp_path / "run").step == 6
    assert saves.begun() == saves.complete() == {"3", "6"}
    saves.check()


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 1 MiB, as /dev/shm is one."""
    with small_disk(tmp_path / "shm", "1m") as folder:
        yield folder


def test_a_folder_on_the_way_that_fills_up(
    tmp_path: Path, saves: Bucket, small_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"ckpt__async_upload": True, "ckpt__async_upload_tmp_folder": str(small_memory / "way")}
    cfg, draw = job(tmp_path, ckpt__save_ckpt_folder=saves.location, **changes), Prefetch.batch

    def fill_up() -> None:
        saved(saves, "3")
        fill(small_memory)

    before_step(monkeypatch, 5, fill_up)
    with pytest.raises(UserError, match=r"/shm/way: .*No space left on device"):
        run(cfg, tmp_path / "run")
    assert saves.complete() == {"3"}
    saves.check()
    assert list((small_memory / "way").iterdir()) == []
    (small_memory / "filler").unlink()
    monkeypatch.setattr(Prefetch, "batch", draw)
    assert run(cfg, tmp_path / "run").step == 8
    assert saves.begun() == saves.complete()


def test_a_folder_on_the_way_that_is_full_is_found_before_work(
    tmp_path: Path, saves: Bucket, small_memory: Path
) -> None:
    changes = {"ckpt__async_upload": True, "ckpt__async_upload_tmp_folder": str(small_memory / "way")}
    fill(small_memory)
    cfg = job(tmp_path, ckpt__save_ckpt_folder=saves.location, **changes)
    with pytest.raises(UserError, match=r"/shm/way: ckpt\.async_upload_tmp_folder: .*No space left on device"):
        run(cfg, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_temporary_folder_that_is_full_is_named(
    tmp_path: Path, saves: Bucket, small_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_memory))
    cfg = job(tmp_path, ckpt__save_ckpt_folder=saves.location)
    before_step(monkeypatch, 2, lambda: fill(small_memory))
    with pytest.raises(UserError, match=r"/shm: no checkpoint can be saved: No space left on device .*TMPDIR"):
        run(cfg, tmp_path / "run")
    assert saves.complete() == set()
