"""What a run says of its schedules before its first step."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint.manifest import CONFIG
from evo_core.train.schedule_told import say_changed_schedule, say_unfinished_schedule
from tests.config.jobs import job as config
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run

SCHEDULE = {"total_steps": 8, "warmup_ratio": 0.25, "eta_min": 1e-3}


@pytest.mark.parametrize(
    ("rate", "end", "of_schedule"),
    [
        ({"total_steps": 40}, (1e-5 + 9e-5 / 2), 1e-5),
        ({"total_steps": 40, "kind": "linear", "eta_min": 0}, 5e-5, 0),
        ({"total_steps": 40, "kind": "wsd", "decay_ratio": 0.5}, 1e-4, 1e-5),
        ({"total_steps": 40, "kind": "wsd", "decay_ratio": 0.75}, (1e-4 - 9e-5 / 3), 1e-5),
        ({"total_steps": 50, "warmup_ratio": 0.84, "kind": "constant"}, 1e-4 / 2, 1e-4),
        ({"total_steps": 40, "kind": "constant"}, None, None),
        ({"total_steps": 40, "last_epoch": 19}, None, None),
        ({"total_steps": 20}, None, None),
        ({}, None, None),
    ],
)
def test_a_schedule_that_is_longer_than_the_run(
    rate: dict[str, Any], end: float | None, of_schedule: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    rate = {"warmup_ratio": 0.0} | rate
    say_unfinished_schedule(config({"data": {"total_steps": 20}, "lr_scheduler": rate}))
    assert [record.getMessage() for record in caplog.records] == (
        []
        if end is None
        else [
            f"lr_scheduler.total_steps: {rate['total_steps']} is more than data.total_steps 20: at the run's end the "
            f"rate is {end:g}, not yet {of_schedule:g} (leave it out to follow data.total_steps)"
        ]
    )


def test_a_decay_that_has_no_step(caplog: pytest.LogCaptureFixture) -> None:
    say_unfinished_schedule(config({"data": {"total_steps": 5}, "lr_scheduler": {"kind": "wsd", "warmup_ratio": 0}}))
    assert caplog.messages == [
        "lr_scheduler.decay_ratio: 0.1 of 5 total_steps is not one step: the rate stays at 0.0001"
    ]


def told(folder: Path) -> list[str]:
    """What a run said of schedules, before its first step."""
    log = (folder / "train.log").read_text()
    before, step, after = log.partition("tflops=")
    assert step and "in its run" not in after
    return [line.partition(" -- ")[2] for line in before.splitlines() if " in its run" in line]


def test_a_resumed_run_names_what_its_checkpoints_schedule_had_otherwise(tmp_path: Path) -> None:
    run(job(tmp_path, data__total_steps=3, lr_scheduler=SCHEDULE), tmp_path / "first")
    assert told(tmp_path / "first") == []
    own = {"ckpt__enable_save_ckpt": True, "lr_scheduler": SCHEDULE}
    run(job(tmp_path, data__total_steps=4, **own), tmp_path / "same")
    assert told(tmp_path / "same") == []

    other = SCHEDULE | {"total_steps": 10, "kind": "wsd", "decay_ratio": 0.3}
    cfg = job(tmp_path, data__total_steps=6, lr_scheduler=other, adam={"lr": 2e-2, "adam_beta2": 0.9})
    run_on_ranks(run, 2, cfg, tmp_path / "other")
    there = tmp_path / "ckpt" / "4"
    cosine = 1e-3 + 9e-3 * (1 + math.cos(math.pi * 2 / 6)) / 2
    assert told(tmp_path / "other") == [
        f"{there}: adam.lr is 0.01 in its run and 0.02 in this one",
        f"{there}: lr_scheduler.total_steps is 8 in its run and 10 in this one",
        f'{there}: lr_scheduler.kind is "cosine" in its run and "wsd" in this one',
        f"{there}: lr_scheduler.decay_ratio is 0.1 in its run and 0.3 in this one",
        f"{there}: beta2_scheduler.init_beta2 is 0.95 in its run and 0.9 in this one",
        f"{there}: the next update is at a rate of 0.02, {cosine:g} in its run; beta2 0.9, 0.95 in its run",
    ]
    assert curve(tmp_path / "other")[0]["lr"] == 2e-2


@pytest.mark.parametrize(("content", "names"), [(["model"], False), (["model", "scheduler"], True), (["all"], True)])
def test_so_does_one_that_goes_on_from_anothers(content: list[str], names: bool, tmp_path: Path) -> None:
    run(job(tmp_path, data__total_steps=3, lr_scheduler=SCHEDULE), tmp_path / "first")
    info = {"path": str(tmp_path / "ckpt" / "3"), "content": content}
    cfg = job(
        tmp_path,
        data__total_steps=4,
        lr_scheduler=SCHEDULE | {"kind": "linear"},
        ckpt={"auto_resume": False, "load_ckpt_info": info, "enable_save_ckpt": False},
    )
    run(cfg, tmp_path / "second")
    assert any("lr_scheduler.kind" in line for line in told(tmp_path / "second")) == names


def test_what_neither_reads_is_no_difference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    constant = {"kind": "constant", "eta_min": 1e-5, "decay_ratio": 0.5}
    (tmp_path / CONFIG).write_text(config({"lr_scheduler": constant}).to_yaml())
    say_changed_schedule(config({"lr_scheduler": {"kind": "constant", "eta_min": 1e-6}}), tmp_path, 0)
    assert caplog.messages == []
    say_changed_schedule(config({"lr_scheduler": {"kind": "constant", "init_steps": 3}}), tmp_path, 0)
    assert "lr_scheduler.init_steps is 0 in its run and 3 in this one" in caplog.text


def test_a_configuration_that_cannot_be_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / CONFIG).write_text("model: {lorem: 1}")
    with caplog.at_level(logging.WARNING):
        say_changed_schedule(config(), tmp_path, 0)
    (line,) = caplog.messages
    assert line.startswith("the schedules of this checkpoint are not compared with this run's: ")
