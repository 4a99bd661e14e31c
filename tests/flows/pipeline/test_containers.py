"""Runs in two containers that share a store and a host name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.pipeline.conftest import Bench

ROOT = Path(__file__).parents[3]


def can_unshare() -> bool:
    words = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="PID namespaces may not be made here")
@pytest.mark.parametrize(
    "proc",
    [pytest.param(["--mount-proc"], id="own /proc"), pytest.param([], id="the host's /proc")],
)
@pytest.mark.slow
def test_containers_that_share_a_host_name_wait_for_each_other(bench: Bench, proc: list[str]) -> None:
    def command(*words: str) -> list[str]:
        return [
            *words,
            sys.executable,
            "-m",
            "flows.cli",
            "run",
            str(bench.file),
            "--no-server",
            "--root",
            str(bench.store.root),
        ]

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(
        [*command(), "--set", "steps.first.runtime.seconds=6"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while first.poll() is None and not list(bench.store.root.glob("artifacts/test.add-*/work/starts")):
        time.sleep(0.05)
    second = subprocess.run(
        command("unshare", "--pid", "--fork", *proc), env=environment, capture_output=True, text=True, timeout=100
    )
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert second.returncode == 0, second.stderr
    assert "waiting for run" in second.stdout
    starts = [len(p.read_text().split()) for p in bench.store.root.glob("artifacts/*/work/starts")]
    assert starts == [1, 1]
