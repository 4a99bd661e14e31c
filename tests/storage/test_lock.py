"""Locks that end with their holder, and the files that say that a process lives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evo_core.storage.identity import left_by_dead, mark
from evo_core.storage.lock import is_held, locked, sign_of_life, try_lock
from tests.forked import FORK, in_a_process_of_nobody


def _hold(path: Path, kind: str, ready: object) -> None:
    with sign_of_life(path) if kind == "sign" else locked(path):
        ready.set()
        time.sleep(600)


@contextmanager
def a_holder(path: Path, kind: str = "lock") -> Iterator[multiprocessing.process.BaseProcess]:
    ready = FORK.Event()
    process = FORK.Process(target=_hold, args=(path, kind, ready))
    process.start()
    assert ready.wait(60)
    try:
        yield process
    finally:
        process.kill()
        process.join(60)


def test_a_lock_is_waited_for_until_its_holder_is_dead(tmp_path: Path) -> None:
    asked = []

    def give_up() -> bool:
        asked.append(1)
        os.kill(holder.pid, signal.SIGKILL)
        return False

    with a_holder(tmp_path / "a.lock") as holder, locked(tmp_path / "a.lock", give_up=give_up):
        assert asked


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    path, mine, asked = tmp_path / "a.lock", ValueError("mine"), time.monotonic()
    with a_holder(path):
        with (
            pytest.raises(BlockingIOError, match=r"another process holds .*a\.lock"),
            locked(path, give_up=lambda: True),
        ):
            raise AssertionError
        with pytest.raises(ValueError, match="mine"), locked(path, give_up=lambda: True, given_up=mine):
            raise AssertionError
        with pytest.raises(BlockingIOError), locked(path, give_up=lambda: time.monotonic() - asked > 0.5):
            raise AssertionError


def test_a_signal_is_heard_while_waiting(tmp_path: Path) -> None:
    def wait() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with locked(path):
                os._exit(1)
        except KeyboardInterrupt:
            os._exit(7)

    path = tmp_path / "a.lock"
    with a_holder(path):
        waiting = FORK.Process(target=wait)
        waiting.start()
        time.sleep(0.5)
        waiting.terminate()
        waiting.join(30)
        assert waiting.exitcode == 7


def test_another_users_lock_is_taken_and_waited_for(tmp_path: Path) -> None:
    """In a folder that several may write to, where the lock's file lets only its owner write."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    lock = tmp_path / "shared" / "a.lock"
    with locked(lock):
        lock.chmod(0o444)

    def take() -> None:
        with locked(lock):
            (lock.parent / "made").touch()

    def give_up() -> None:
        with pytest.raises(BlockingIOError), locked(lock, give_up=lambda: True):
            raise AssertionError("another has it")

    assert in_a_process_of_nobody(tmp_path, take) == 0
    assert (lock.parent / "made").exists()
    with locked(lock):
        assert in_a_process_of_nobody(tmp_path, give_up) == 0


def test_a_folder_that_may_not_be_written_has_no_new_lock(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir(mode=0o555)

    def take() -> None:
        with pytest.raises(PermissionError), locked(tmp_path / "others" / "a.lock"):
            raise AssertionError

    assert in_a_process_of_nobody(tmp_path, take) == 0


def test_many_can_share_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.touch()
    with path.open() as first, path.open() as second, path.open() as third:
        assert try_lock(first.fileno(), shared=True) and try_lock(second.fileno(), shared=True)
        assert not try_lock(third.fileno())
        first.close()
        assert try_lock(second.fileno()), "the last that holds it can have it alone"


def test_a_sign_of_life(tmp_path: Path) -> None:
    path = tmp_path / "alive" / "run"
    with sign_of_life(path):
        assert is_held(path)
    assert not path.exists() and is_held(path), "it ended in good order"
    with a_holder(path, "sign") as holder:
        assert is_held(path)
        holder.kill()
        holder.join(60)
        assert path.exists() and not is_held(path)
    assert [p.name for p in path.parent.iterdir()] == ["run"]


def test_a_mark_tells_the_living_from_the_dead() -> None:
    marks = FORK.SimpleQueue()
    process = FORK.Process(target=lambda: marks.put(mark()))
    process.start()
    process.join(60)
    assert left_by_dead(marks.get()) is True
    assert left_by_dead(mark()) is False
    pid, started, counted_in = mark().split("-")
    assert left_by_dead(f"{pid}-{int(started) + 1}-{counted_in}") is True, "the number was given to another process"
    assert left_by_dead(f"{pid}-{started}-00000000") is None, "of another machine, or before a reboot"
