"""metrics.jsonl is one clean curve, whatever an earlier attempt left."""

from __future__ import annotations

import json
from pathlib import Path

from evo_core.train.sinks import MetricsFile
from tests.train.jobs import job, run
from tests.train.test_averages import NAMES


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_from_the_resumed_step_on_are_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for step in range(5):
        first.write({"step": step, "loss": 1.0})
    first.close()
    with path.open("a") as stream:
        stream.write('{"step": 5, "lo')  # killed in the middle of a line
    second = MetricsFile(path, 3)
    second.write({"step": 3, "loss": 2.0})
    second.close()
    assert steps(path) == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_is_there_as_soon_as_it_is_written_and_is_strict_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m", 0)
    file.write({"step": 0, "loss": float("nan"), "grad_norm": float("inf")})
    (line,) = (tmp_path / "m").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda c: 1 / 0) == {"step": 0, "loss": None, "grad_norm": None}
    file.close()


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = job(tmp_path, enable_tb=True, data__total_steps=3, data__valid_every=3, ckpt__enable_save_ckpt=False)
    run(cfg, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    assert {"lr", "grad_norm", "loss/en", "val/en_loss", "tgs (tokens/gpu/second)"} <= set(events.Tags()["scalars"])
    averages = {tag for tag in events.Tags()["scalars"] if tag.startswith("tgs/")}
    assert averages == {f"tgs/{name}" for name in NAMES}


def test_tensorboard_elsewhere(tmp_path: Path) -> None:
    where = tmp_path / "elsewhere"
    cfg = job(
        tmp_path, enable_tb=True, tensorboard_folder=str(where), data__total_steps=1, ckpt__enable_save_ckpt=False
    )
    run(cfg, tmp_path / "run")
    assert any(where.glob("events.*"))
