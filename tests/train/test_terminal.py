"""What `evo train` shows on a terminal, and does not elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import TrainConfig
from evo_core.train.command import STOPPED
from tests.train.jobs import job
from tests.train.processes import Command

LINES = """
import logging
from evo_core.train.run_log import logging_of_run

def run(line):
    for done in range(6, 13):
        logging.getLogger("evo_core.steps").info("step %d :key: [red] é %s", done, "x" * 60)
        if line is not None:
            line.show(done, 2.5, 12345.6, 7200.0)
        ACT

with logging_of_run(speaks=True) as lines:
    with lines.progress_line(5, 12) as line:
        run(line)
    logging.getLogger("evo_core.steps").info("finished")
"""
"""Seven steps of a run that goes on at step 5, as the loop shows them: it takes no torch to start."""


def on_terminal(
    command: Sequence[str], *, width: int = 120, goes_away: bool = False, **more: str
) -> tuple[str, int, str]:
    """All that a command writes to a terminal, its status, and all that it writes to stderr."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with subprocess.Popen(
        command, env=environment | {"TERM": "xterm"} | more, stdin=there, stdout=there,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(there)
        written = b""
        try:
            while some := os.read(here, 1 << 16):
                written += some
                if goes_away:
                    break
        except OSError:  # how a terminal says that nobody writes to it any more
            pass
        os.close(here)
        _, errors = process.communicate()
    return written.decode(), process.returncode, errors


def steps(act: str = "pass") -> list[str]:
    return [sys.executable, "-c", LINES.replace("ACT", act)]


def plain(shown: str) -> str:
    """Without what moves the cursor and gives colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def train_on_terminal(tmp_path: Path, cfg: TrainConfig, *, ranks: int, stop_at: str | None = None) -> str:
    """All that a run writes to a terminal; it is told to stop when that is seen there."""
    (tmp_path / "job.yaml").write_text(cfg.to_yaml())
    here, there = pty.openpty()
    environment = {"TERM": "xterm", "COLUMNS": "120"}
    arguments = ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / "run")]
    process = Command(arguments, Path(os.ttyname(there)), ranks=ranks, environment=environment)
    os.close(there)
    written, status = b"", 0
    with suppress(OSError):  # how a terminal says that nobody writes to it any more
        while some := os.read(here, 1 << 16):
            written += some
            if not status and stop_at is not None and stop_at in plain(written.decode(errors="replace")):
                process.kill(number=signal.SIGTERM)
                status = STOPPED
    assert process.wait() == [status] * ranks
    os.close(here)
    return written.decode()


def test_one_line_under_the_log_of_all_ranks(tmp_path: Path) -> None:
    changes = {"data__total_steps": 3, "data__valid_every": 2, "ckpt__checkpoint_every": 2}
    shown = plain(train_on_terminal(tmp_path, job(tmp_path, **changes), ranks=2))
    drawn = [piece for piece in re.split(r"[\r\n]+", shown) if re.match(r"step \d", piece)]
    assert drawn[0].startswith("step 0/3 ")
    assert re.match(r"step 3/3  loss \d+\.\d{4}  [\d,]+ tokens/s  0:00:00 left ", drawn[-1])
    log = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert all(line.expandtabs() in shown.expandtabs() for line in log)  # none is cut or drawn over


def test_a_run_that_is_stopped_takes_its_line_away(tmp_path: Path) -> None:
    cfg = job(tmp_path, data__total_steps=1000, data__log_every=1000, ckpt__enable_save_ckpt=False)
    shown = train_on_terminal(tmp_path, cfg, ranks=1, stop_at="tokens/s")
    _, _, after = shown.rpartition("\r\n\r\x1b[1A\x1b[2K")
    assert " -- stopped by a signal at step " in after and "\x1b" not in after


def test_nothing_but_the_log_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(job(tmp_path, data__total_steps=3, ckpt__enable_save_ckpt=False).to_yaml())
    arguments = ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / "run")]
    environment = {"TERM": "xterm", "FORCE_COLOR": "1"}
    assert Command(arguments, tmp_path / "shown", environment=environment).wait() == [0]
    assert (tmp_path / "shown").read_bytes() == (tmp_path / "run" / "train.log").read_bytes()


@pytest.mark.parametrize("width", [120, 30, 1])
def test_it_fits_the_terminal_and_lines_of_the_log_stay_whole(width: int) -> None:
    shown, status, _ = on_terminal(steps(), width=width, NO_COLOR="1")
    assert status == 0
    pieces = [piece for piece in re.split(r"[\r\n]+", plain(shown)) if piece]
    logged = [piece for piece in pieces if "INFO" in piece]
    assert [line.partition(" -- ")[2] for line in logged] == [
        *(f"step {done} :key: [red] é {'x' * 60}" for done in range(6, 13)),
        "finished",
    ]
    drawn = [piece for piece in pieces if "INFO" not in piece]
    assert drawn and max(map(len, drawn)) <= width
    if width == 120:
        assert (
            drawn[0].startswith("step 5/12 ") and "step 12/12  loss 2.5000  12,346 tokens/s  2:00:00 left" in drawn[-1]
        )


def test_a_terminal_of_few_characters() -> None:
    shown, status, _ = on_terminal(steps(), width=30, PYTHONIOENCODING="ascii")
    assert status == 0 and shown.isascii()
    assert shown.count(r":key: [red] \xe9 xxx") == 7


@pytest.mark.parametrize("variable", [{"TERM": "dumb"}, {"TTY_INTERACTIVE": "0"}])
def test_none_where_a_terminal_cannot_draw_it(variable: dict[str, Any]) -> None:
    shown, status, _ = on_terminal(steps(), **variable)
    assert status == 0
    assert "\x1b" not in shown and "tokens/s" not in shown
    assert shown.count(" -- step ") == 7


def test_an_error_leaves_the_terminal_as_it_was() -> None:
    shown, status, errors = on_terminal(steps("raise SystemExit('data ran out')"))
    assert (status, errors) == (1, "data ran out\n")
    assert shown.endswith("\r\n\r\x1b[1A\x1b[2K")  # the cursor stands where the line was, which is gone


def test_a_killed_run_leaves_the_cursor_to_be_seen() -> None:
    shown, status, _ = on_terminal(steps("import os; os.kill(os.getpid(), 9)"))
    assert status == -9
    assert "step 6/12" in plain(shown) and "\x1b[?25l" not in shown


def test_a_run_goes_on_when_its_terminal_goes_away() -> None:
    act = "import os\n        while os.isatty(1): pass"
    _, status, errors = on_terminal(steps(act), goes_away=True)
    assert (status, errors) == (0, "stdout: log lines are lost: Input/output error\n")
