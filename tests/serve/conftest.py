"""A server of a small checkpoint, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.generate.conftest import Trained, trained

__all__ = ["trained"]


@dataclass
class Served:
    """A running server.

    url: where it listens.
    greeting: what it said at the start.
    """

    url: str
    greeting: str
    process: subprocess.Popen[str]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def serving(checkpoint: Path, *options: str) -> Iterator[Served]:
    """`evo serve` on a free port for the block."""
    command = [sys.executable, "-m", "evo_core.serve", str(checkpoint), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not (lines and "Ctrl-C stops" in lines[-1]):
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        served = next(line for line in lines if "http://" in line)
        yield Served(served.split()[1], "".join(lines), process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def server(trained: Trained) -> Iterator[Served]:
    with serving(trained.saved, "--name", "small", "--max-length", "50000", "--max-batch", "8") as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened
