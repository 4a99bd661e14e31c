"""Checkpoints in an object store, while the run or the store's server is killed -9 at random moments of its saves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from evo_core.storage.s3 import writer
from tests.s3_server import S3Server, lead_to, require_weed, s3_server
from tests.train.killed_in_saves import Job, Tally, kill_in_saves, kill_server_in_saves
from tests.train.test_killed_saves import WHEN
from tests.train.watched import Bucket

pytestmark = [pytest.mark.faults, pytest.mark.s3]

LARGE = {"model__hidden_size": 320}
"""A model of which a rank writes 8 MiB and 4."""


@pytest.fixture(scope="module")
def _server() -> Iterator[S3Server]:
    require_weed()
    with s3_server() as server:
        yield server


@pytest.fixture
def server(_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server that nobody else asks for. What is saved there goes in the smallest pieces that a store takes."""
    lead_to(_server, monkeypatch)
    monkeypatch.setattr(writer, "PIECE", 5 << 20)
    return _server


def run_killed(tmp_path: Path, server: S3Server, times: int, *behind: bool, **changes: int) -> Tally:
    saves = Bucket(server)
    job = Job(tmp_path, saves, steps=8 * times, **changes)
    expected = job.undisturbed()
    tally = kill_in_saves(job, times, behind=behind)
    job.finish(expected)
    assert saves.uploads() == []
    return tally


def server_killed(
    tmp_path: Path, server: S3Server, times: int, monkeypatch: pytest.MonkeyPatch, **changes: int
) -> Tally:
    """Of a job that saves in its steps and one that saves behind them, at the same time."""
    jobs = []
    for name in ("within", "behind"):
        (tmp_path / name).mkdir()
        changes |= {"ckpt__async_upload": name == "behind"}
        jobs.append(Job(tmp_path / name, Bucket(server), steps=24 * times, **changes))
    expected = jobs[0].undisturbed()
    many = times > 5
    # The server is back after two seconds or three, now and then seven: of many times a run gives up in some.
    monkeypatch.setenv("EVO_S3_PATIENCE", "6" if many else "60")
    tally = kill_server_in_saves(jobs, server, times, stays_away=0.2 if many else 0.0)
    monkeypatch.delenv("EVO_S3_PATIENCE")
    for job in jobs:
        job.finish(expected)
        assert isinstance(job.saves, Bucket) and job.saves.uploads() == []
    return tally


@pytest.mark.slow
def test_the_run_a_few_times(tmp_path: Path, server: S3Server) -> None:
    run_killed(tmp_path, server, 2, False, True)


@pytest.mark.slow
def test_the_server_a_few_times(tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server_killed(tmp_path, server, 2, monkeypatch)


def test_uploads_of_a_killed_run_are_taken_back(tmp_path: Path, server: S3Server) -> None:
    saves = Bucket(server)
    job = Job(tmp_path, saves, steps=6, **LARGE)

    def dies_in_an_upload(step: int) -> None:
        close = writer.ObjectWriter.close

        def kill(self: writer.ObjectWriter) -> None:
            if "/ckpt/4/" in self._place.key and self._upload is not None:
                self._sent[0].result()
                os.kill(os.getpid(), signal.SIGKILL)
            close(self)

        if step == 3:
            writer.ObjectWriter.close = kill  # type: ignore[method-assign]

    assert -signal.SIGKILL in job.start(each_step=dies_in_an_upload).wait()
    assert any(key.startswith("runs/ckpt/4/optimizer/") for key in saves.uploads())
    assert saves.begun() - saves.complete() == {"4"}
    assert job.start().wait() == [0, 0]
    assert saves.begun() == saves.complete()
    assert saves.uploads() == []


@pytest.mark.slow
@pytest.mark.timeout(2400)
@WHEN
def test_the_run_many_times(tmp_path: Path, server: S3Server, behind: bool) -> None:
    assert run_killed(tmp_path, server, 50, behind, **LARGE).before_the_end >= 10


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_server_many_times(tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = server_killed(tmp_path, server, 50, monkeypatch, **LARGE)
    assert tally.before_the_end >= 10
    assert 0 < tally.lost < 50
