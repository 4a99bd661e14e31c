"""Where the words of `evo` go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "p.yaml").write_text("pipeline: 语料\nsteps:\n  步骤: {uses: 'tests.pipeline.kinds:Echo'}\n")
    return [sys.executable, "-m", "flows.cli", "plan", str(tmp_path / "p.yaml"), "--root", str(tmp_path / "store")]


def test_names_that_a_terminal_cannot_show_are_escaped(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\\u6b65\\u9aa4" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="nothing here that is always full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_output_that_cannot_be_written_is_one_line(command: list[str], more: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command, *more], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "evo: nothing can be printed: No space left on device\n")
