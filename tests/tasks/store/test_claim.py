"""Who holds a claim: one process at a time, a living one for as long as it lives, a dead one no longer than that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

import tasks.store.claim as claims
from tasks.store.claim import Claim, holder, known_dead
from tests.forked import FORK


def claim_file(state: Path, **fields: Any) -> Path:
    """A claim as another process left it."""
    state.mkdir(parents=True, exist_ok=True)
    path = state / "claim.json"
    path.write_text(
        json.dumps({"owner": "b" * 32, "run": "other", "host": "elsewhere", "pid": 1, "started": 5} | fields)
    )
    return path


def beaten(path: Path, seconds_ago: float) -> None:
    moment = time.time() - seconds_ago
    os.utime(path, (moment, moment))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hearts that beat every 50 ms and count as stopped after half a second."""
    monkeypatch.setattr(claims, "HEARTBEAT", 0.05)
    monkeypatch.setattr(claims, "STALE_AFTER", 0.5)


def test_a_held_claim_is_nobody_elses_and_is_gone_when_given_up(tmp_path: Path) -> None:
    with Claim.acquire(tmp_path, "mine") or pytest.fail("it was free") as claim:
        assert Claim.acquire(tmp_path, "yours") is None
        assert (holder(tmp_path) or {})["run"] == "mine"
        assert not claim.lost
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_heart_of_an_owner_beats(tmp_path: Path, quick: None) -> None:
    with Claim.acquire(tmp_path, "mine") or pytest.fail("it was free") as claim:
        beaten(claim.path, 3600)
        time.sleep(0.3)
        assert time.time() - claim.path.stat().st_mtime < 10
        time.sleep(claims.STALE_AFTER)
        assert Claim.acquire(tmp_path, "yours") is None


def test_an_owner_elsewhere_lives_as_long_as_its_heart_beats(tmp_path: Path, quick: None) -> None:
    path = claim_file(tmp_path)
    assert (holder(tmp_path) or {})["run"] == "other"
    assert Claim.acquire(tmp_path, "mine") is None
    beaten(path, 1.0)
    assert holder(tmp_path) is None
    assert Claim.acquire(tmp_path, "mine") is not None


@contextmanager
def beating(path: Path, clock_is_off: float) -> Iterator[None]:
    """The heart of an owner whose clock is off by so many seconds, on a file system that believes it."""
    text = f"""
        import os, time
        while True:
            now = time.time() + {clock_is_off}
            os.utime({str(path)!r}, (now, now))
            print("beat", flush=True)
            time.sleep(0.02)
    """
    heart = subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE)
    assert heart.stdout is not None
    try:
        heart.stdout.readline()  # a machine with much to do starts it late
        yield
    finally:
        heart.kill()
        heart.wait()


@pytest.mark.parametrize("clock_is_off", [-600.0, 600.0])
def test_a_clock_that_goes_wrong_kills_nobody_and_makes_nobody_immortal(
    tmp_path: Path, quick: None, clock_is_off: float
) -> None:
    path = claim_file(tmp_path)
    deadline = time.monotonic() + 1.0
    with beating(path, clock_is_off):
        while time.monotonic() < deadline:
            assert Claim.acquire(tmp_path, "mine") is None
    deadline = time.monotonic() + 20.0
    while (claim := Claim.acquire(tmp_path, "mine")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not claim.lost


def test_this_machines_clock_does_not_age_the_owner_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_file(tmp_path)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + 7200) * 1e9))
    assert holder(tmp_path) is not None


def test_after_a_reboot_a_process_with_the_same_number_is_another(tmp_path: Path) -> None:
    with Claim.acquire(tmp_path, "before") or pytest.fail("it was free") as claim:
        record = json.loads(claim.path.read_text())
    path = claim_file(tmp_path, **(record | {"boot": "00000000-0000-0000-0000-000000000000"}))
    assert holder(tmp_path) is not None  # whether that machine is this one nobody knows: its heart decides
    beaten(path, 3600)
    assert holder(tmp_path) is None


def test_a_dead_process_of_this_machine_is_seen_at_once(tmp_path: Path) -> None:
    def hold() -> None:
        assert Claim.acquire(tmp_path, "dead") is not None
        os.kill(os.getpid(), signal.SIGKILL)

    dead = FORK.Process(target=hold)
    dead.start()
    while dead.exitcode is None and not known_dead(tmp_path):  # a zombie counts as dead too
        time.sleep(0.01)
    dead.join()
    assert holder(tmp_path) is None
    with Claim.acquire(tmp_path, "mine") or pytest.fail("it was free"):
        assert (holder(tmp_path) or {})["run"] == "mine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"owner": "../../x"}', '{"owner": 5}', "[" * 99999])
def test_a_damaged_claim_is_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / "claim.json").write_text(content)
    assert holder(tmp_path) is None
    with Claim.acquire(tmp_path, "mine") or pytest.fail("it was free") as claim:
        assert not claim.lost
        assert Claim.acquire(tmp_path, "yours") is None
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_follows_itself_is_not_followed_for_ever(tmp_path: Path) -> None:
    record = claim_file(tmp_path).read_text()
    (tmp_path / f"claim-after-{'b' * 32}.json").write_text(record)
    assert (holder(tmp_path) or {})["run"] == "other"


def test_the_heir_of_a_dead_heir(tmp_path: Path) -> None:
    claim_file(tmp_path, host=os.uname().nodename, pid=2**22 + 1, started=5)
    for _ in range(3):
        heir = FORK.Process(target=lambda: Claim.acquire(tmp_path, "heir") and os.kill(os.getpid(), signal.SIGKILL))
        heir.start()
        heir.join()
        assert heir.exitcode == -signal.SIGKILL
    with Claim.acquire(tmp_path, "mine") or pytest.fail("it was free") as claim:
        assert not claim.lost
    assert list(tmp_path.iterdir()) == []


def test_who_was_taken_over_learns_of_it_and_takes_nothing_away(tmp_path: Path, quick: None) -> None:
    claim_file(tmp_path)
    seemed_dead = Claim(tmp_path / "claim.json", "b" * 32)
    beaten(seemed_dead.path, 60)
    with Claim.acquire(tmp_path, "mine") or pytest.fail("it was free") as mine:
        assert seemed_dead.lost
        with seemed_dead:
            pass
        assert not mine.lost


def race(state: Path, barrier: Barrier, owners: Any) -> None:
    barrier.wait(60)
    if Claim.acquire(state, f"run-{os.getpid()}") is not None:
        owners.put(os.getpid())
    barrier.wait(60)  # the owner lives until everybody has tried
    os._exit(0)


@pytest.mark.parametrize(
    "rounds", [pytest.param(5), pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_eight_processes_at_one_dead_claim_have_one_owner(tmp_path: Path, rounds: int) -> None:
    for number in range(rounds):
        state = tmp_path / str(number)
        claim_file(state, host=os.uname().nodename, pid=2**22 + 1)
        barrier, owners = FORK.Barrier(8), FORK.SimpleQueue()
        racers = [FORK.Process(target=race, args=(state, barrier, owners)) for _ in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(60)
        found = []
        while not owners.empty():
            found.append(owners.get())
        assert len(found) == 1, f"round {number}: {found}"
