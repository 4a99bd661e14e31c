"""metrics.jsonl is one clean curve, whatever an earlier attempt left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.errors import ConfigError
from evo_core.train.earlier_records import copy_records
from evo_core.train.sinks import MetricsFile
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run
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


def board(folder: Path) -> list[tuple[int, float]]:
    """The curve of the loss as tensorboard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_the_records_of_an_earlier_run_are_carried_on(tmp_path: Path) -> None:
    """From its checkpoint of step 3, after it had gone on to step 5; and once more, after that was ended at step 6."""
    shown = {"enable_tb": True, "lr_scheduler": {"total_steps": 8, "eta_min": 1e-3}}
    run(job(tmp_path, data__total_steps=5, **shown), tmp_path / "first")

    def later(total: int, folder: str, earlier: str, **ckpt: Any) -> list[tuple[int, float]]:
        cfg = job(tmp_path, data__total_steps=total, resume_tb_folder=str(tmp_path / earlier), ckpt=ckpt, **shown)
        run(cfg, tmp_path / folder)
        return board(tmp_path / folder / "tensorboard")

    info = {"path": str(tmp_path / "ckpt" / "3"), "content": ["all"]}
    own = {"save_ckpt_folder": str(tmp_path / "own"), "checkpoint_every": 2}
    first, second = tmp_path / "first", tmp_path / "second"
    seen = later(6, "second", "first/tensorboard", load_ckpt_info=info, auto_resume=False, **own)
    expected = [(r["step"], pytest.approx(r["loss"])) for r in [*curve(first)[:3], *curve(second)]]
    assert seen == expected and [step for step, _ in seen] == list(range(6))

    files = len(list((second / "tensorboard").iterdir()))
    seen = later(8, "second", "first/tensorboard", auto_resume=True, **own)
    assert seen[:6] == expected and [step for step, _ in seen] == list(range(8))
    assert len(list((second / "tensorboard").iterdir())) == files + 1

    seen = later(8, "second", "second", auto_resume=True, **own)  # its own folder: nothing is twice
    assert [step for step, _ in seen] == list(range(8))
    assert len(list((second / "tensorboard").iterdir())) == files + 2


def test_no_records_to_carry_on_end_a_run_on_every_rank_before_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cfg = job(tmp_path, enable_tb=True, resume_tb_folder=str(tmp_path / "empty"), ckpt__enable_save_ckpt=False)

    def body() -> str:
        with pytest.raises(ConfigError) as caught:
            run(cfg, tmp_path / "run")
        return str(caught.value)

    (said,) = set(run_on_ranks(body, 2))
    hint = "name the tensorboard folder of the earlier run"
    assert said == f"resume_tb_folder: {tmp_path / 'empty'} holds no tensorboard records ({hint})"
    assert not list((tmp_path / "run").glob("tensorboard/*"))


def test_records_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "earlier" / "events.out.tfevents.1"
    broken.parent.mkdir()
    broken.symlink_to("/proc/self/mem")  # a file that opens, and cannot be read
    with pytest.raises(ConfigError, match=r"events\.out\.tfevents\.1: resume_tb_folder: it cannot be read"):
        copy_records(tmp_path / "earlier", tmp_path / "here")
