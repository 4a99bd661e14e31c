"""Runs whose checkpoints are in an object store: saved in the step or behind it, resumed, resharded, passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint import verify
from evo_core.checkpoint.folder import find
from evo_core.checkpoint.manifest import read_manifest
from evo_core.errors import CheckpointError
from evo_core.storage.files import file_sizes, open_file, write_file
from tests.ranks import run_on_ranks
from tests.s3_server import S3Server
from tests.train.jobs import job, losses, run

pytestmark = pytest.mark.s3


@pytest.fixture
def place(s3: S3Server) -> str:
    """A save folder in a bucket of its own."""
    return f"s3://{s3.new_bucket()}/runs/a"


def whole(folder: Any) -> int:
    (manifest,) = run_on_ranks(lambda: verify(folder), 1)
    return int(manifest.step)


@pytest.mark.parametrize(
    "how", ["in the step", *(pytest.param(how, marks=pytest.mark.slow) for how in ("behind it", "by way of a folder"))]
)
def test_a_run_goes_on_from_the_store_at_another_layout(place: str, tmp_path: Path, how: str) -> None:
    changes: dict[str, Any] = {"model__dtype": "torch.bfloat16", "ckpt__checkpoint_every": 2}
    on_disk = job(tmp_path, **changes)
    run(on_disk, tmp_path / "disk")

    changes |= {"ckpt__save_ckpt_folder": place, "ckpt__async_upload": how != "in the step"}
    if how == "by way of a folder":
        changes["ckpt__async_upload_tmp_folder"] = str(tmp_path / "way")
    first, rest = (
        job(tmp_path, data__total_steps=4, lr_scheduler__total_steps=8, **changes),
        job(tmp_path, **changes),
    )
    assert run(first, tmp_path / "run").checkpoint == f"{place}/4"
    run_on_ranks(lambda: run(rest, tmp_path / "run"), 2)
    assert losses(tmp_path / "run")[:4] == losses(tmp_path / "disk")[:4]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "disk"), rel=1e-2)
    assert [found.name for found in find(place)] == ["8", "6", "4", "2"]
    assert [whole(found.path) for found in find(place)] == [8, 6, 4, 2]
    assert file_sizes(f"{place}/8").keys() == {*read_manifest(f"{place}/8").files, "manifest.json"}
    assert not (tmp_path / "way").is_dir() or list((tmp_path / "way").iterdir()) == []


def test_what_is_damaged_there_is_passed_over(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saves = {"ckpt__save_ckpt_folder": place, "ckpt__checkpoint_every": 2}
    run(job(tmp_path, data__total_steps=4, lr_scheduler__total_steps=8, **saves), tmp_path / "run")
    damaged = f"{place}/4/model/__0_0.distcp"
    with open_file(damaged) as file:
        content = bytearray(file.read())
    content[len(content) // 2] ^= 1
    write_file(damaged, bytes(content))
    run(job(tmp_path, **saves), tmp_path / "run")
    assert "do not have the digest they were written with: falling back" in capsys.readouterr().out
    assert [found.name for found in find(place)] == ["8", "6", "4-2", "4", "2"]


def test_a_store_that_does_not_list_what_was_written_is_found_before_the_first_step(place: str, tmp_path: Path) -> None:
    root = place.replace("/runs/", "/runs//")  # the server takes one slash for two, as a file system does
    with pytest.raises(CheckpointError, match=r"/runs//a: no checkpoint can be saved there: the store does not list"):
        run(job(tmp_path, ckpt__save_ckpt_folder=root), tmp_path / "run")
    assert not (tmp_path / "run").exists()
