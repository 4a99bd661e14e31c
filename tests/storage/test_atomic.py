"""Files and folders that are written whole or not at all: kills, full disks, many writers at once."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import sys
import time
from pathlib import Path

import pytest

from evo_core.checkpoint.folder import prepare
from evo_core.errors import CheckpointError
from evo_core.storage import atomic
from evo_core.storage.files import create_file, new_folder, replacing, write_file
from tests.forked import FORK, in_a_process, in_a_process_of_nobody


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_file(path, "语料 \udce9\n")
    assert path.read_bytes() == "语料 ".encode() + b"\\udce9\n"
    write_file(str(path), b"\0")
    assert path.read_bytes() == b"\0"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("name", [b"\xe9.json", b"x" * 255, "语".encode() * 85, b"two\nlines", b"~x", b"gs:x"])
def test_names_of_every_kind(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    write_file(path, "1")
    assert create_file(path, "2") is False
    with new_folder(path.with_name(os.fsdecode(name[:-1]) + "d")) as draft:
        (draft / "file").write_text("3")
    assert path.read_text() == "1"
    assert len(names(tmp_path)) == 2


def test_the_umask_holds(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", "1")
        create_file(tmp_path / "b", "1")
        with new_folder(tmp_path / "c"):
            pass
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abc"]
    assert modes == [0o640, 0o640, 0o750]


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", "other")
    assert (tmp_path / "target").read_text() == "mine"
    with replacing(tmp_path / "link", durable=False) as draft:
        draft.symlink_to("target")
    assert (tmp_path / "link").read_text() == "mine"


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    named = os.open(tmp_path / "pipe", os.O_RDWR)
    reading, writing = os.pipe()
    try:
        write_file(tmp_path / "pipe", "1")
        with replacing(Path(f"/dev/fd/{writing}")) as draft:
            draft.write_text("2")
        assert os.read(named, 10) == b"1" and os.read(reading, 10) == b"2"
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    finally:
        for descriptor in (named, reading, writing):
            os.close(descriptor)
    assert names(tmp_path) == ["pipe"]


def test_a_draft_is_named_by_whole_characters(tmp_path: Path) -> None:
    """Some file systems refuse a name with half a character."""
    for number in range(3):
        drafted = atomic.draft_name(tmp_path / ("x" * number + "语" * 80)).name
        assert drafted.encode() and len(os.fsencode(drafted)) < 256


def test_a_kill_in_the_middle_of_a_file_leaves_the_old_one(tmp_path: Path) -> None:
    def half() -> None:
        with replacing(path) as draft:
            draft.write_text("ha")
            die()

    path = tmp_path / "a.txt"
    write_file(path, "old")
    assert in_a_process(half) == -signal.SIGKILL
    assert path.read_text() == "old" and len(names(tmp_path)) == 2
    write_file(tmp_path / "b.txt", "another")
    assert names(tmp_path) == ["a.txt", "b.txt"], "the next write into the folder clears the draft"


def test_a_kill_in_the_middle_of_a_folder_leaves_the_old_one(tmp_path: Path) -> None:
    def half() -> None:
        with new_folder(path, replace=True) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / "file").write_text("half")
            die()

    path = tmp_path / "folder"
    with new_folder(path) as draft:
        (draft / "file").write_text("old")
    assert in_a_process(half) == -signal.SIGKILL
    assert names(path) == ["file"] and len(names(tmp_path)) == 2
    with new_folder(path, replace=True) as draft:
        (draft / "other").write_text("new")
    assert names(tmp_path) == ["folder"] and names(path) == ["other"]


def test_a_large_folder_is_not_read_again_for_each_file_that_is_added(tmp_path: Path) -> None:
    looks, counts = [], True

    def hear(event: str, args: tuple[object, ...]) -> None:  # an audit hook stays: `counts` says when to listen
        if counts and event == "os.scandir" and str(args[0]) == str(tmp_path):
            looks.append(event)

    for number in range(5000):
        (tmp_path / f"{number}").touch()
    sys.addaudithook(hear)
    try:
        for number in range(200):
            write_file(tmp_path / f"new-{number}", "1", durable=False)
    finally:
        counts = False
    assert 1 <= len(looks) <= 20, "once, and again when the time that it takes is little beside what has passed"


@pytest.mark.faults
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    def for_ever() -> None:
        while True:
            for letter in "ab":
                write_file(tmp_path / "file", letter * 100_000, durable=False)

    for number in range(12):
        process = FORK.Process(target=for_ever)
        process.start()
        while not (tmp_path / "file").exists():
            time.sleep(0.001)
        time.sleep(random.Random(number).uniform(0, 0.02))
        process.kill()
        process.join(30)
        content = (tmp_path / "file").read_text()
        assert content in ("a" * 100_000, "b" * 100_000)
    atomic.clear_drafts(tmp_path)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("unnamed", [True, False], ids=["files without a name", "drafts"])
def test_of_eight_that_create_a_file_one_wins(tmp_path: Path, unnamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not unnamed:  # as on NFS
        monkeypatch.setattr(atomic, "UNNAMED", os.O_DIRECTORY)
    begin, results = FORK.Barrier(8), FORK.SimpleQueue()

    def create(number: int) -> None:
        for turn in range(20):
            begin.wait(60)
            results.put((turn, number, create_file(tmp_path / f"{turn}.json", str(number) * 5000)))

    processes = [FORK.Process(target=create, args=(number,)) for number in range(8)]
    for process in processes:
        process.start()
    found = [results.get() for _ in range(8 * 20)]
    for process in processes:
        process.join(60)
    winners = sorted((turn, number) for turn, number, made in found if made)
    assert [turn for turn, _ in winners] == list(range(20))
    for turn, number in winners:
        assert (tmp_path / f"{turn}.json").read_text() == str(number) * 5000
    assert len(names(tmp_path)) == 20


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EROFS])
def test_a_file_system_without_links_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    reason = os.strerror(code) if code == errno.EROFS else "no hard link can be made on this file system"
    with pytest.raises(OSError, match=reason):
        create_file(tmp_path / "a", "1")
    with pytest.raises(CheckpointError, match=f"no checkpoint can be saved there: {reason}"):
        prepare(tmp_path)  # a run hears of it when it begins
    assert names(tmp_path) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    def without_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        for write in (write_file, create_file):
            with pytest.raises(OSError):
                write(tmp_path / ("a" if write is write_file else "new"), "x" * 10_000)
        with pytest.raises(OSError), new_folder(tmp_path / "folder") as draft:
            (draft / "file").write_text("x" * 10_000)

    write_file(tmp_path / "a", "before")
    assert in_a_process(without_room) == 0
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"


def test_a_folder_that_may_not_be_written_keeps_what_it_has(tmp_path: Path) -> None:
    def try_to_write() -> None:
        with pytest.raises(PermissionError):
            write_file(folder / "a", "after")
        with pytest.raises(PermissionError), new_folder(folder / "new"):
            raise AssertionError

    folder = tmp_path / "folder"
    write_file(folder / "a", "before")
    folder.chmod(0o555)
    assert in_a_process_of_nobody(tmp_path, try_to_write) == 0
    folder.chmod(0o755)
    assert names(folder) == ["a"] and (folder / "a").read_text() == "before"


def test_a_folder_takes_the_place_of_nothing_but_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with new_folder(tmp_path / "taken") as draft:
        (draft / "file").write_text("1")
    with pytest.raises(OSError) as caught, new_folder(tmp_path / "taken"):
        pass
    assert caught.value.filename2 is not None
    with pytest.raises(RuntimeError), new_folder(tmp_path / "other"):
        raise RuntimeError
    assert names(tmp_path) == ["taken"] and names(tmp_path / "taken") == ["file"]


def test_a_folder_stays_where_nothing_took_its_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "a", replace=True, durable=False) as draft:
        draft.rmdir()
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_link_to_an_empty_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with new_folder(tmp_path / "link") as draft:
        (draft / "file").write_text("1")
    assert (tmp_path / "link").readlink() == Path("elsewhere")
    assert names(tmp_path / "elsewhere") == ["file"] and names(tmp_path) == ["elsewhere", "link"]


def test_a_mounted_folder_is_refused_before_the_work() -> None:
    with pytest.raises(OSError, match="a file system is mounted there") as caught, new_folder(Path("/proc")):
        pytest.fail("hours of work")
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fsync = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    def write_all() -> None:
        write_file(tmp_path / "a", "1")
        assert create_file(tmp_path / "b", "1")
        with new_folder(tmp_path / "c"):
            pass

    monkeypatch.setattr(os, "fsync", of_files_alone)
    if code == errno.EINVAL:
        write_all()
        assert names(tmp_path) == ["a", "b", "c"]
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            write_all()


def test_what_is_durable_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append(("folder" if name == tmp_path.name else "draft", path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    path = tmp_path / "file"
    write_file(path, "1")
    assert synced == [("draft", False), ("folder", True)]
    path.unlink()
    synced.clear()
    create_file(path, "1")
    assert synced == [("draft", False), ("folder", True)]
    path = tmp_path / "made"
    synced.clear()
    with new_folder(path) as draft:
        (draft / "file").write_text("1")
    assert synced == [("draft", False), ("draft", False), ("folder", True)]
    synced.clear()
    write_file(tmp_path / "cache", "1", durable=False)
    create_file(tmp_path / "other", "1", durable=False)
    with new_folder(tmp_path / "index", durable=False):
        pass
    assert synced == []


def test_files_that_belong_together_get_their_names_in_order(tmp_path: Path) -> None:
    old, drafts = (
        tmp_path / "a.meta",
        [(atomic.new_draft(tmp_path / name), tmp_path / name) for name in ("a", "a.meta")],
    )
    old.write_text("of the old a")
    for draft, path in drafts:
        draft.write_text(path.name)
    atomic.publish(drafts, stale=[old])
    assert names(tmp_path) == ["a", "a.meta"] and old.read_text() == "a.meta"


def test_only_drafts_of_the_dead_are_cleared(tmp_path: Path) -> None:
    mine = atomic.new_draft(tmp_path / "a")
    elsewhere = tmp_path / ".a.77-88-00000000.0.tmp"
    folder = tmp_path / ".a.77-88-00000000.1.tmp"
    foreign = tmp_path / ".somebody.else.tmp"
    for path in (mine, elsewhere, foreign, folder / "sub" / "file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    long_ago = time.time() - 2 * 86400
    for path in (mine, elsewhere, foreign, folder, folder / "sub"):
        os.utime(path, (long_ago, long_ago))
    atomic.clear_drafts(tmp_path)
    assert mine.exists() and foreign.exists() and not elsewhere.exists()
    assert folder.exists(), "something in it is new: its writer, on another machine, is at work"
    os.utime(folder / "sub" / "file", (long_ago, long_ago))
    atomic.clear_drafts(tmp_path)
    assert not folder.exists() and mine.exists()
