"""The verbs on this machine, and those that read in S3; what is written there: `test_s3.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evo_core.errors import DataError
from evo_core.storage import files
from tests.forked import in_a_process
from tests.s3_server import S3Server

SHM = Path("/dev/shm")


def listed(root: str | Path, **options: int) -> tuple[list[str], list[tuple[str, str]]]:
    left_out: list[tuple[str, str]] = []
    found = files.list_files(root, lambda *what: left_out.append(what), **options)
    return [file.path for file in found], sorted(left_out)


def test_the_same_file_by_every_spelling(tmp_path: Path) -> None:
    for number, location in enumerate((tmp_path / "a", f"{tmp_path}/a", f"local:{tmp_path}/a", f"file://{tmp_path}/a")):
        files.write_file(location, str(number))
        assert not files.create_file(location, "no")
        with files.open_file(location) as file:
            assert file.read() == str(number).encode()
        assert files.file_exists(location) and files.file_size(location) == 1
        assert files.file_info(location).mtime_ns == (tmp_path / "a").stat().st_mtime_ns
    files.delete(f"local:{tmp_path}/a")
    assert not files.file_exists(tmp_path / "a")


def test_linking_takes_the_place_of_what_is_there_and_writes_into_nothing(tmp_path: Path) -> None:
    old, new, target = tmp_path / "old", tmp_path / "new", tmp_path / "folder" / "target"
    old.write_text("old")
    new.write_text("new")
    for source in (old, old, new):
        files.link_or_copy(source, target)
        files.link_or_copy(target, target)
        assert target.read_text() == source.name
    assert old.read_text() == "old" and new.read_text() == "new"
    for pointed_at in (tmp_path / "nothing", old):
        target.unlink(missing_ok=True)
        target.symlink_to(pointed_at)
        files.link_or_copy(new, target)
        assert target.read_text() == "new" and not target.is_symlink()
    assert not (tmp_path / "nothing").exists() and old.read_text() == "old"


def test_deleting(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    for name in ("folder", "link", "nothing", "folder"):
        files.delete(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_is_seen_whole_until_it_is_gone(tmp_path: Path) -> None:
    def remove() -> None:
        monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: os._exit(9))  # killed as it begins
        files.delete(folder)

    folder, monkeypatch = tmp_path / "folder", pytest.MonkeyPatch()
    files.write_file(folder / "file", "1")
    assert in_a_process(remove) == 9
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 1
    files.write_file(tmp_path / "next", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["next"]


def test_linking_and_copying(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_text("1")
    files.link_or_copy(source, tmp_path / "sub" / "b")
    files.copy_file(source, tmp_path / "sub" / "c")
    files.link_tree(tmp_path / "sub", tmp_path / "tree")
    assert (tmp_path / "sub" / "b").samefile(source) and (tmp_path / "tree" / "b").samefile(source)
    assert not (tmp_path / "sub" / "c").samefile(source)
    assert files.link_if_absent(source, tmp_path / "d") and files.link_if_absent(source, tmp_path / "d")
    assert not files.link_if_absent(tmp_path / "sub" / "c", tmp_path / "d")


@pytest.mark.skipif(not os.access(SHM, os.W_OK), reason="there is no second file system here")
def test_a_link_to_another_file_system_is_a_copy(tmp_path: Path) -> None:
    if SHM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    source, target = tmp_path / "a", SHM / f"evo-test-{os.getpid()}"
    source.write_text("1")
    os.utime(source, ns=(10**18, 10**18))
    try:
        files.link_or_copy(source, target)
        assert target.read_text() == "1" and target.stat().st_mtime_ns == 10**18
    finally:
        target.unlink(missing_ok=True)


def test_what_a_listing_holds_and_leaves_out(tmp_path: Path) -> None:
    for name in ("b/x", "a/y", "a/sub/z", ".git/config", "a/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "again").symlink_to("a")
    (tmp_path / "gone").symlink_to("nowhere")
    left_out = [("hidden", ".git"), ("hidden", "a/.hidden"), ("linked again", "again"), ("linked to nothing", "gone")]
    assert listed(tmp_path) == (["a/sub/z", "a/y", "b/x"], left_out)
    assert listed(tmp_path, depth=2)[0] == ["a/y", "b/x"]
    for missing, says in ((tmp_path / "none", "there is no such folder"), (tmp_path / "b" / "x", "this is no folder")):
        with pytest.raises(DataError, match=says):
            listed(missing)


@pytest.mark.s3
def test_reading_in_a_store_is_as_on_disk(s3: S3Server, tmp_path: Path) -> None:
    bucket, contents = s3.new_bucket(), {"en/a.txt": b"one", "cn/b.txt": b"two", ".git/x": b"no"}
    for name, content in contents.items():
        files.write_file(tmp_path / name, content)
        s3.client().put_object(Bucket=bucket, Key=f"raw/{name}", Body=content)
    assert listed(f"s3://{bucket}/raw") == listed(tmp_path) == (["cn/b.txt", "en/a.txt"], [("hidden", ".git")])
    endpoint = s3.endpoint.removeprefix("http://")
    for location in (f"s3://{bucket}/raw/en/a.txt", f"boto3:s3://{bucket}.{endpoint}/raw/en/a.txt"):
        with files.open_file(location) as file:
            file.seek(1)
            assert file.read() == b"ne"
        assert files.file_exists(location) and files.file_size(location) == 3
        first = files.file_info(location)
        assert (first.path, first.uri, first.size) == ("a.txt", location, 3) and first.tag
    s3.client().put_object(Bucket=bucket, Key="raw/en/a.txt", Body=b"changed")
    assert files.file_info(f"s3://{bucket}/raw/en/a.txt").tag != first.tag
    files.copy_file(f"s3://{bucket}/raw/cn/b.txt", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"two"
    assert not files.file_exists(f"s3://{bucket}/raw")
    for look in (files.open_file, files.file_size, files.file_info):
        with pytest.raises(DataError, match=r"raw/none: there is no such file"):
            look(f"s3://{bucket}/raw/none")
    with pytest.raises(DataError, match=r"raw/none: there is no such file"):
        files.copy_file(f"s3://{bucket}/raw/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match="there is nothing here"):
        listed(f"s3://{bucket}/none")


def test_the_libraries_of_stores_are_imported_when_one_is_asked(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "import evo_core.storage.lock\n"
        "from evo_core.storage.files import list_files, open_file, write_file\n"
        f"root = Path({str(tmp_path)!r})\n"
        "write_file(root / 'a', 'b'); open_file(root / 'a').read(); list_files(root, print)\n"
        "print(*sorted({'boto3', 'botocore', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
