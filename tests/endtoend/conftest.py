"""`evo` as a person runs it: a process with a command line, in a folder, and what it leaves there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
KINDS = {
    "raw": "source.sample_text",
    "tokenizer": "tokenizer.train",
    "tokens": "data.tokenize",
    "shards": "data.shard",
    "model": "train.pretrain",
    "scores": "eval.holdout",
    "samples": "generate.samples",
}
STEPS = tuple(KINDS)


class Evo:
    """The command in one folder with one store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "evo_runs"
        self.started: list[subprocess.Popen[str]] = []

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *words]

    def environment(self) -> dict[str, str]:
        """No Slurm cluster, though another test of this session may have one."""
        python_path = f"{HERE.parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        inherited = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
        return inherited | {"EVO_ROOT": str(self.root), "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start the command; whatever it prints comes on one pipe."""
        process = subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def __call__(self, *words: str, status: int = 0) -> str:
        """Run the command and give what it printed."""
        process = self.start(*words)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == status, printed
        return printed

    def plan(self, *words: str) -> dict[str, dict[str, Any]]:
        """The steps of a plan by name."""
        return {s["step"]: s for s in json.loads(self("plan", *words, "--json"))["steps"]}

    def artifact(self, step: str) -> Path:
        """The folder of the newest committed artifact of a step."""
        manifests = sorted(
            self.root.glob(f"artifacts/{KINDS[step]}-*/manifest.json"), key=lambda p: p.stat().st_mtime_ns
        )
        attempt = json.loads(manifests[-1].read_text())["attempt"]
        return manifests[-1].parent / "attempts" / str(attempt)

    def curve(self) -> list[tuple[int, float]]:
        """(step, loss) of the newest model."""
        lines = (self.artifact("model") / "metrics.jsonl").read_text().splitlines()
        return [(row["step"], row["loss"]) for row in map(json.loads, lines)]

    def processes(self) -> list[int]:
        """Every living process that works on this store."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"EVO_ROOT={self.root}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:  # it ended while we looked
                continue
        return found

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def evo(tmp_path: Path) -> Iterator[Evo]:
    evo = Evo(tmp_path)
    yield evo
    evo.close()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evo]:
    """One run of the tiny pipeline that nothing disturbed. Do not write into its store."""
    evo = Evo(tmp_path_factory.mktemp("whole"))
    evo.printed = evo("run", str(HERE / "tiny.yaml"), "--no-server")  # type: ignore[attr-defined]
    yield evo
    evo.close()
