"""What an address that hangs costs a training step: ``python -m benchmarks.alerts``.

One process trains the same small model in turns without anybody to tell, and with a web hook and a monitor that take
each message and never answer, of whom the first is told of every step and the second too. The median step of the one
is compared with that of the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Row, judged, output_file
from evo_core.monitor import alerts
from tests.monitor.receiver import receiving
from tests.replaced import replaced
from tests.train.jobs import curve, job, run

BAR = 1.02
"""Times as long as a step without anybody to tell, at most."""

QUICK = ("--rounds", "1", "--steps", "6")

MODEL: dict[str, Any] = {
    "model__hidden_size": 256,
    "model__num_layers": 4,
    "model__dtype": "torch.float32",
    "data__valid_every": 0,
    "ckpt__enable_save_ckpt": False,
}


def step_times(folder: Path, steps: int, monitor: dict[str, Any]) -> list[float]:
    """Seconds of the steps of a run, without the first two."""
    run(job(folder, monitor=monitor, data__total_steps=steps, data__empty_cache_and_diag_interval=1, **MODEL), folder)
    times = [record["step_time"] for record in curve(folder)][2:]
    (folder / "metrics.jsonl").unlink()
    return times


def rows(medians: dict[str, float]) -> Iterator[Row]:
    """Of what is written: how many times as long a step is."""
    slower = medians["hanging"] / medians["quiet"]
    note = f"{medians['quiet'] * 1e3:.2f} ms without, {medians['hanging'] * 1e3:.2f} ms with"
    yield judged("alerts", "a step with addresses that hang", slower, "times", bar=BAR, at_most=True, note=note)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet, hanging = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder, receiving("hangs") as found, replaced(alerts, "PERIOD", 0.0):
        alert = {"webhooks": [found.url], "light_monitor_address": found.url, "loss_spike": 1 + 1e-9}
        for number in range(options.rounds):
            for times, monitor in ((quiet, {}), (hanging, {"alert": alert})):
                times += step_times(Path(folder) / f"{number}", options.steps, monitor)
        assert found.bodies, "nobody was told anything"
    ratio = statistics.median(hanging) / statistics.median(quiet)
    print(f"{len(quiet)} steps each: median {statistics.median(quiet) * 1e3:.2f} ms without, ", end="")
    print(f"{statistics.median(hanging) * 1e3:.2f} ms with addresses that hang: ratio {ratio:.3f} (bar {BAR})")
    if options.json is not None:
        medians = {"quiet": statistics.median(quiet), "hanging": statistics.median(hanging)}
        options.json.write_text(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
