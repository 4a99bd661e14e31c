"""What the store writes: whole or not at all, with nothing left of what could not be written; and the days of refs."""

from __future__ import annotations

import datetime
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evo_core.storage.files import link_if_absent
from tasks.store.digests import DigestMemory
from tasks.store.json_file import create_json, write_json
from tasks.store.refs import Refs
from tests.forked import in_a_process

KEY, OTHER_KEY = "1" * 64, "2" * 64


def without_room(call: Callable[[], object]) -> None:
    """`call` in a process that may write files of a hundred bytes at most: the system refuses as a full disk does."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(OSError):
            call()

    assert in_a_process(run) == 0


def remember_many(inventory: Path) -> None:
    memory = DigestMemory(inventory)
    for number in range(20):
        (file := inventory.parent / f"{number}.txt").write_text("x")
        memory.of(file)
    memory.save()


@pytest.mark.parametrize("write", [write_json, create_json])
def test_a_full_disk_leaves_what_was_there_and_no_drafts(tmp_path: Path, write: Callable[..., object]) -> None:
    path = tmp_path / "a.json"
    if write is write_json:
        write_json(path, "before")
    without_room(lambda: write(path, "x" * 10_000))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] * (write is write_json)


def test_a_full_disk_leaves_no_draft_of_the_inventory(tmp_path: Path) -> None:
    without_room(lambda: remember_many(tmp_path / "inventory.parquet"))
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".txt"]


@pytest.mark.parametrize("write", [write_json, create_json])
def test_the_draft_of_a_process_that_was_killed_is_cleared(
    tmp_path: Path, write: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.kill(os.getpid(), signal.SIGKILL))
    assert in_a_process(lambda: write(tmp_path / "a.json", 1)) == -signal.SIGKILL
    monkeypatch.undo()
    assert len(list(tmp_path.glob(".*.tmp"))) == (write is write_json)  # what is created needs no name for its draft
    write_json(tmp_path / "b.json", 2)
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


def test_the_draft_of_a_living_process_stays(tmp_path: Path) -> None:
    from evo_core.storage.identity import mark

    draft = tmp_path / f".a.json.{mark()}.0.tmp"
    elsewhere = tmp_path / ".a.json.77-88-00000000.0.tmp"
    for path in (draft, elsewhere):
        path.write_text("half")
    write_json(tmp_path / "b.json", 2)
    assert draft.exists() and elsewhere.exists()
    os.utime(elsewhere, (0, time.time() - 2 * 86400))
    write_json(tmp_path / "b.json", 2)
    assert draft.exists() and not elsewhere.exists()


def test_a_link_that_was_made_though_the_answer_was_lost_counts_as_made(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("1")
    (tmp_path / "yours").write_text("2")
    assert link_if_absent(tmp_path / "mine", tmp_path / "target")
    assert link_if_absent(tmp_path / "mine", tmp_path / "target")  # NFS asks twice when an answer is lost
    assert not link_if_absent(tmp_path / "yours", tmp_path / "target")


@pytest.fixture
def refs(tmp_path: Path) -> Refs:
    return Refs(tmp_path / "refs")


def publish(refs: Refs, key: str = KEY) -> str:
    return str(refs.publish("corpus", step="shards", key=key, type="dataset", run="r")["version"])


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "Asia/Shanghai", "UTC"])
def test_a_ref_is_dated_by_the_local_day(refs: Refs, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"""
from pathlib import Path
from tests.tasks.store.test_store_files import *
print(publish(Refs(Path({str(refs.folder)!r}))))
"""
    said = subprocess.run(
        [sys.executable, "-c", text], env=os.environ | {"TZ": zone}, capture_output=True, text=True, check=True
    ).stdout.strip()
    entry = refs.resolve(f"ref:corpus@{said}")
    made = datetime.datetime.fromisoformat(entry["made"])
    assert made.tzinfo is not None and made.date().isoformat() == said
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert said in {(datetime.datetime.now() - datetime.timedelta(minutes=m)).date().isoformat() for m in (0, 5)}
        assert made.utcoffset() == datetime.datetime.now().astimezone().utcoffset()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_two_versions_on_one_day_and_the_same_again(refs: Refs) -> None:
    first, second = publish(refs), publish(refs, OTHER_KEY)
    assert second == f"{first}.2"
    assert publish(refs, OTHER_KEY) == second
    assert publish(refs) == f"{first}.3"
    assert refs.versions("corpus") == [first, second, f"{first}.3"]
    assert refs.resolve("ref:corpus")["version"] == f"{first}.3"


def test_a_publish_that_was_killed_half_way_is_not_done_twice(refs: Refs) -> None:
    publish(refs, OTHER_KEY)
    second = publish(refs)
    latest = refs.folder / "corpus" / "latest.json"
    write_json(latest, refs.resolve(f"ref:corpus@{refs.versions('corpus')[0]}"))  # killed before latest was moved
    assert publish(refs) == second
    assert refs.resolve("ref:corpus")["key"] == KEY


def test_refs_dated_in_utc_by_older_versions_are_read(refs: Refs) -> None:
    entry = dict(name="corpus", version="2026-11-20.10", step="shards", key=KEY, type="dataset", run="r")
    for version in ("2026-11-20.10", "2026-11-20", "2026-11-20.2"):
        made = "2026-11-20T23:59:59+00:00"
        write_json(refs.folder / "corpus" / f"{version}.json", {**entry, "version": version, "made": made})
    (refs.folder / "corpus" / "notes.json").write_text("{}")
    assert refs.versions("corpus") == ["2026-11-20", "2026-11-20.2", "2026-11-20.10"]
    assert refs.resolve("ref:corpus@2026-11-20.2")["key"] == KEY
