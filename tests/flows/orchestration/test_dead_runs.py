"""Which flow runs count as dead."""

from __future__ import annotations

import threading
from pathlib import Path

from flows.orchestration import dead_runs


def test_a_run_is_never_dead_while_it_begins_or_ends(tmp_path: Path) -> None:
    over = threading.Event()

    def live_often() -> None:
        for number in range(300):
            with dead_runs.living(tmp_path, f"00000000-0000-0000-0000-{number:012d}"):
                pass
        over.set()

    thread = threading.Thread(target=live_often)
    thread.start()
    seen_dead = []
    while not over.is_set():
        seen_dead += dead_runs.dead_runs(tmp_path)
    thread.join()
    assert seen_dead == []


def test_a_run_that_left_its_file_is_dead(tmp_path: Path) -> None:
    name = "00000000-0000-0000-0000-000000000001"
    with dead_runs.living(tmp_path, name):
        assert dead_runs.dead_runs(tmp_path) == []
    (tmp_path / "alive" / name).touch()
    (tmp_path / "alive" / ".nfs0001").touch()  # of a file that was removed while it was open
    assert [path.name for path in dead_runs.dead_runs(tmp_path)] == [name]
