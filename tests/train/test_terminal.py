"""What `evo train` shows on a terminal, and does not elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from tests.train.jobs import job


def train(tmp_path: Path, *, terminal: bool) -> str:
    """All that it writes to stdout, a terminal or a pipe."""
    (tmp_path / "job.yaml").write_text(job(tmp_path, data__total_steps=3, ckpt__enable_save_ckpt=False).to_yaml())
    command = [sys.executable, "-m", "evo_core.train", "--config", "job.yaml", "--folder", "run"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    if not terminal:
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    here, there = pty.openpty()
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=there, stdout=there) as process:
        os.close(there)
        written = b""
        try:
            while some := os.read(here, 1 << 16):
                written += some
        except OSError:  # how a terminal says that nobody writes to it any more
            pass
        assert process.wait() == 0
    os.close(here)
    return written.decode()


def test_a_line_under_the_log_of_a_terminal(tmp_path: Path) -> None:
    shown = train(tmp_path, terminal=True)
    log = (tmp_path / "run" / "train.log").read_text().splitlines()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"step\s+3/3\s.*loss \d+\.\d{4} .*tokens/s", plain)
    assert all(line.expandtabs() in plain.expandtabs() for line in log if "tflops=" in line)  # none is cut or lost


def test_nothing_but_the_log_in_a_pipe(tmp_path: Path) -> None:
    shown = train(tmp_path, terminal=False)
    assert "\x1b" not in shown and "tokens/s" not in shown
    assert shown == (tmp_path / "run" / "train.log").read_text()
