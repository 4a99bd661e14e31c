"""How long commands take until they do something: ``python -m benchmarks.startup``.

Each row is a process of its own, run several times in turns with the others; the median of its CPU time (user and
system, of its children too) and of its wall time. The last rows are what others take: Python alone, ``import torch``,
and the help of Prefect, litgpt and transformers where they are installed.

``first step`` is a whole training run of one step of a tiny model without a checkpoint, from `evo train` on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.results import Row, judged, output_file

QUICK = ("--rounds", "1")
_EVO = [sys.executable, "-m", "flows.cli"]
_DEMO = str(Path(__file__).resolve().parent.parent / "configs/pipelines/demo.yaml")


def commands(folder: Path) -> dict[str, list[str]]:
    """What is measured: its name and the words of its command line."""
    rows = {
        "evo --help": [*_EVO, "--help"],
        "evo plan --help": [*_EVO, "plan", "--help"],
        "evo plan demo.yaml": [*_EVO, "plan", _DEMO, "--root", str(folder / "store")],
        "evo run, all reused": [*_EVO, "run", str(_reused(folder)), "--no-server", "--root", str(folder / "store")],
        "python -m evo_core.train --help": [sys.executable, "-m", "evo_core.train", "--help"],
        "evo train, a wrong key": [*_EVO, "train", "--config", str(_job(folder)), "--set", "adam.lrr=1"],
        "evo train, first step": [*_EVO, "train", "--config", str(_job(folder)), "--folder", str(folder / "run")],
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    }
    for name in ("prefect", "litgpt", "transformers"):
        beside = Path(sys.executable).with_name(name)
        if found := str(beside) if beside.exists() else shutil.which(name):
            rows[f"{name} --help"] = [found, "--help"]
    return rows


def _job(folder: Path) -> Path:
    """The configuration of a training run of one step, and its tokens."""
    from evo_core.data import BinWriter

    path = folder / "job.yaml"
    if path.exists():
        return path
    with BinWriter(folder / "tokens/en/train_000.bin") as writer:
        for start in range(40):
            writer.write(np.arange(start, start + 30, dtype=np.int64) % 61 + 3)
    shape = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 64, "mlp_ratio": 2.0}
    job = {
        "model_type": "LLAMA2",
        "enable_tb": False,
        "model": {**shape, "dtype": "torch.float32"},
        "data": {
            "train_folder": str(folder / "tokens"),
            "seq_len": 32,
            "micro_bsz": 1,
            "global_batch_tokens": 32,
            "total_steps": 1,
        },
        "ckpt": {"enable_save_ckpt": False},
    }
    path.write_text(yaml.safe_dump(job))
    return path


def _reused(folder: Path) -> Path:
    """A pipeline of one step, made once."""
    (folder / "raw/en").mkdir(parents=True, exist_ok=True)
    (folder / "raw/en/a.txt").write_text("a text\n" * 9)
    path = folder / "one.yaml"
    step = {"uses": "source.files", "params": {"root": str(folder / "raw")}}
    path.write_text(yaml.safe_dump({"pipeline": "one", "steps": {"raw": step}}))
    return path


def once(words: list[str]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a command, one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2) or (done.returncode == 2 and "adam.lrr" not in done.stderr):
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each command, after a first run of each that fills the caches."""
    with tempfile.TemporaryDirectory() as name:
        rows = commands(Path(name))
        taken: dict[str, list[tuple[float, float]]] = {title: [] for title in rows}
        for number in range(rounds + 1):
            for title, words in rows.items():
                seconds = once(words)
                if number:
                    taken[title].append(seconds)
    return [
        {
            "command": title,
            "cpu_seconds": statistics.median(cpu for cpu, _ in each),
            "wall_seconds": statistics.median(wall for _, wall in each),
        }
        for title, each in taken.items()
    ]


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """A row for each command."""
    return [
        judged("startup", row["command"], row["cpu_seconds"], "CPU-s", note=f"{row['wall_seconds']:.2f} s by the clock")
        for row in figures["rows"]
    ]


def main() -> None:
    """Measure, print the table, write JSON where asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    measured = measure(arguments.rounds)
    print(f"{'':34}{'CPU s':>8}{'wall s':>8}")
    for row in measured:
        print(f"{row['command']:34}{row['cpu_seconds']:8.2f}{row['wall_seconds']:8.2f}")
    if arguments.json:
        machine = platform.processor() or platform.machine()
        arguments.json.write_text(
            json.dumps({"machine": machine, "rounds": arguments.rounds, "rows": measured}, indent=1)
        )


if __name__ == "__main__":
    main()
