"""Folders of a store, copied to this machine once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evo_core.errors import DataError, UserError
from evo_core.storage import files
from evo_core.storage.stage import stage
from tests.s3_proxy import broken_network
from tests.s3_server import S3Server

pytestmark = pytest.mark.s3

CONTENTS = {"data/a/x.bin": b"one", "data/b/y.bin": b"two" * 1000, "data/.hidden": b"", "beside.json": b"{}"}


@pytest.fixture
def root(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix with some objects; copies of them go below tmp_path/cache."""
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "cache"))
    root = f"s3://{s3.new_bucket()}/set"
    for path, content in CONTENTS.items():
        files.write_file(f"{root}/{path}", content)
    return root


def held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copies(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "stores").iterdir() if path.suffix != ".lock")


def test_a_copy_is_used_again_until_something_changes(root: str, tmp_path: Path) -> None:
    assert stage(tmp_path) == tmp_path and stage(f"local:{tmp_path}") == tmp_path
    first = stage(f"{root}/data", beside=("beside.json", "nothing.json"))
    assert held(first.parent) == CONTENTS
    inode = (first / "a" / "x.bin").stat().st_ino
    assert stage(f"{root}/data/", beside=("beside.json",)) == first
    assert (first / "a" / "x.bin").stat().st_ino == inode and len(copies(tmp_path)) == 1
    (first / "a" / "x.bin").write_bytes(b"cut")
    os.truncate(first / "a" / "x.bin", 1)
    assert held(stage(f"{root}/data", beside=("beside.json",)).parent) == CONTENTS
    files.write_file(f"{root}/data/a/x.bin", b"ONE")
    second = stage(f"{root}/data", wanted=lambda path: path.startswith("a/"))
    assert second != first and held(second) == {"a/x.bin": b"ONE"}


def test_one_of_several_copies_and_the_others_wait(root: str, tmp_path: Path) -> None:
    def look(_: int) -> tuple[Path, int]:
        folder = stage(f"{root}/data")
        return folder, (folder / "b" / "y.bin").stat().st_ino

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(look, range(4)))) == 1
    assert len(copies(tmp_path)) == 1


_DIES_OVER_IT = """
import os, sys
from evo_core.storage import stage
from evo_core.storage.s3.transfer import download

def half(wanted):
    download(list(wanted)[:1])
    os._exit(9)

stage.download = half
stage.stage(sys.argv[1])
"""


def test_a_half_copy_is_none_and_goes(root: str, tmp_path: Path) -> None:
    # A process from the ground up: one forked off would have the locks of threads that talk to the store here.
    died = subprocess.run([sys.executable, "-c", _DIES_OVER_IT, f"{root}/data"], timeout=120)
    assert died.returncode == 9
    (half,) = copies(tmp_path)
    assert half.endswith(".tmp")
    folder = stage(f"{root}/data")
    assert copies(tmp_path) == [folder.parent.name]


def test_a_store_that_breaks_meanwhile(
    s3: S3Server, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = root.removeprefix("s3://").partition("/")[0]
    content = os.urandom(3 << 20)
    files.write_file(f"{root}/data/c", content)
    with broken_network(s3.endpoint) as network:
        location = f"boto3:s3://{bucket}.{network.address}/set/data"
        files.file_info(f"{location}/c")  # a connection is there
        network.cut = 1 << 20
        assert (stage(location) / "c").read_bytes() == content
        assert network.cuts == 1
        monkeypatch.setenv("EVO_S3_PATIENCE", "1")
        monkeypatch.setenv("EVO_CACHE", str(tmp_path / "again"))
        network.silent = True
        with pytest.raises(DataError, match=r"/set/data.*: it cannot be read \(the store gave no good answer for 1 s"):
            stage(location)
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_copied(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"set/none: there is nothing here \(check bucket and prefix\)"):
        stage(f"{root}/none")
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"no copy of .*set/data can be kept here .*\(EVO_CACHE names another folder\)"):
        stage(f"{root}/data")
