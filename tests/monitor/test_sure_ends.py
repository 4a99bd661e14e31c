"""A run that hangs is ended, blamed and told of rightly, whatever else is in a bad way."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from evo_core.job import STUCK
from evo_core.monitor import last_words
from evo_core.monitor.alert_file import AlertFile
from evo_core.monitor.events import Event
from evo_core.monitor.last_words import silent_ranks, write_last_words
from evo_core.storage.lock import locked
from tests.replaced import replaced

WATCHED = """
    import sys, threading, time
    from evo_core.monitor import watchdog
    def watch():
        return watchdog.Watchdog(0.5, 0.5, store=None, rank=0, world_size=1, tell=print)
"""


def _run(code: str) -> int:
    """The exit status of a program that nobody reads from."""
    program = textwrap.dedent(WATCHED) + textwrap.dedent(code)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            return process.wait(40)
        finally:
            process.kill()


def test_a_process_whose_output_is_not_read_is_ended() -> None:
    code = """
        watch()
        while True:
            print("x" * 1000, file=sys.stderr, flush=True)
    """
    assert _run(code) == STUCK


def test_an_event_that_was_told_is_not_told_again_while_another_rank_holds_the_file(tmp_path: Path) -> None:
    path, event = tmp_path / "alerts.jsonl", Event("stuck", "text", 1, 0.0, 0)
    assert AlertFile(path, "attempt").first(event, "stuck")
    with locked(path):
        assert not AlertFile(path, "attempt").first(event, "stuck")
        assert AlertFile(path, "attempt").first(event, "another")


def test_a_rank_whose_collectives_cannot_be_told_leaves_its_stacks(tmp_path: Path) -> None:
    def broken() -> None:
        raise KeyError("state")

    with replaced(last_words, "open_collectives", broken):
        write_last_words(tmp_path, 1, "it hangs")
    assert silent_ranks(tmp_path, 3) == [0, 2]
    assert "KeyError" in (tmp_path / "rank-00001.collectives.json").read_text()


def test_ranks_are_silent_where_there_is_no_folder(tmp_path: Path) -> None:
    assert silent_ranks(tmp_path / "none", 2) == [0, 1]
