"""Checkpoints in an object store, while the run or the store's server is killed -9 at random moments of its saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evo_core.storage.s3 import writer
from tests.s3_server import S3Server, lead_to, require_weed, s3_server
from tests.train.killed_in_saves import Job, Tally, kill_in_saves, kill_server_in_saves
from tests.train.test_killed_saves import WHEN
from tests.train.watched import Bucket

pytestmark = [pytest.mark.faults, pytest.mark.s3]

MIB = 1 << 20
STEPS_A_KILL = 8


@pytest.fixture(scope="module")
def _server() -> Iterator[S3Server]:
    require_weed()
    with s3_server() as server:
        yield server


@pytest.fixture
def server(_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server that nobody else asks for; what is saved there goes in several pieces."""
    lead_to(_server, monkeypatch)
    monkeypatch.setattr(writer, "PIECE", 5 * MIB)  # a store takes no smaller ones
    return _server


def job(tmp_path: Path, server: S3Server, times: int, behind: bool) -> Job:
    """Of a file of 7 MiB and one of 4 a rank."""
    changes = {"model__hidden_size": 320, "ckpt__async_upload": behind}
    return Job(tmp_path, Bucket(server), steps=STEPS_A_KILL * times, **changes)


def run_killed(tmp_path: Path, server: S3Server, times: int, behind: bool) -> Tally:
    run = job(tmp_path, server, times, behind)
    expected = run.undisturbed()
    tally = kill_in_saves(run, times)
    run.finish(expected)
    assert isinstance(run.saves, Bucket) and run.saves.uploads() == []
    return tally


def server_killed(tmp_path: Path, server: S3Server, times: int, behind: bool, monkeypatch: pytest.MonkeyPatch) -> Tally:
    run = job(tmp_path, server, times, behind)
    expected = run.undisturbed()
    monkeypatch.setenv("EVO_S3_PATIENCE", "8")  # it is back after two seconds or three, now and then seven
    tally = kill_server_in_saves(run, server, times)
    monkeypatch.delenv("EVO_S3_PATIENCE")
    run.finish(expected)
    assert isinstance(run.saves, Bucket) and run.saves.uploads() == []
    return tally


@WHEN
def test_the_run_a_few_times(tmp_path: Path, server: S3Server, behind: bool) -> None:
    run_killed(tmp_path, server, 5, behind)


@WHEN
def test_the_server_a_few_times(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    server_killed(tmp_path, server, 5, behind, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@WHEN
def test_the_run_many_times(tmp_path: Path, server: S3Server, behind: bool) -> None:
    assert run_killed(tmp_path, server, 50, behind).before_the_end >= 10


@pytest.mark.slow
@pytest.mark.timeout(2400)
@WHEN
def test_the_server_many_times(tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, behind: bool) -> None:
    tally = server_killed(tmp_path, server, 50, behind, monkeypatch)
    assert tally.before_the_end >= 10
    assert 0 < tally.lost < 50
