"""What happens to a run is told once, by one rank."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from evo_core.config import load_config
from evo_core.data import Prefetch
from evo_core.errors import ConfigError
from evo_core.monitor import alerts as alerts_module
from evo_core.monitor.alert_file import AlertFile
from evo_core.monitor.alerts import Alerts
from evo_core.monitor.events import Event
from evo_core.monitor.heartbeat import Heartbeat
from evo_core.parallel.collectives import RankFailed
from evo_core.train.record import StepRecord
from tests.monitor.receiver import Receiver, receiving
from tests.ranks import run_on_ranks
from tests.replaced import replaced
from tests.train.jobs import before_each_step, curve, job, run, settings

CHANGES: dict[str, Any] = {"data__total_steps": 4, "ckpt__checkpoint_every": 3}


def told(found: Receiver) -> list[str]:
    return [message["event"] for message in found.messages]


def test_start_end_and_going_on(tmp_path: Path) -> None:
    with receiving() as found:
        monitor = {"alert": {"webhooks": [found.url], "loss_spike": None}}
        run(job(tmp_path, monitor=monitor, data__total_steps=3), tmp_path / "run")
        run(job(tmp_path, monitor=monitor, ckpt__auto_resume=True, data__total_steps=5), tmp_path / "run")
    assert told(found) == ["start", "end", "restart", "end"]
    texts = [message["text"] for message in found.messages]
    assert texts[0] == "none_test: the run starts at step 0, 1 ranks on 1 machines"
    assert texts[1].startswith("none_test: the run finished at step 3, loss ")
    assert f"goes on at step 3 from {tmp_path}/ckpt/3" in texts[2]
    assert (tmp_path / "run" / "alerts.jsonl").read_text().count("\n") == 4


def test_the_stop_file(tmp_path: Path) -> None:
    with receiving() as found:
        stop = tmp_path / "stop"
        cfg = job(tmp_path, monitor={"alert": {"webhooks": [found.url]}}, ckpt__stop_file_path=str(stop), **CHANGES)
        draw = Prefetch.batch

        def batch(self: Prefetch, step: int) -> Any:
            if step == 1:
                stop.write_text("2")
            return draw(self, step)

        with replaced(Prefetch, "batch", batch):
            run(cfg, tmp_path / "run")
    assert told(found)[-1] == "stop file"


def test_a_loss_that_jumps(tmp_path: Path) -> None:
    with receiving() as found:
        alert = {"webhooks": [found.url], "loss_spike": 1.000001}
        run(job(tmp_path, monitor={"alert": alert}, data__total_steps=8), tmp_path / "run")
    losses = [record["loss"] for record in curve(tmp_path / "run")]
    jumped = [step for step in range(1, 8) if losses[step] > 1.000001 * losses[step - 1]]
    spikes = [message for message in found.messages if message["event"] == "loss spike"]
    assert spikes[0]["step"] == jumped[0]
    assert [message["step"] for message in spikes[1:]] == [None] * (len(jumped) > 1)  # the others within the period


def test_what_repeats_itself_is_counted(tmp_path: Path) -> None:
    with receiving() as found:
        alerts = Alerts(job(tmp_path, monitor={"alert": {"webhooks": [found.url]}}), rank=0, attempt="a")
        for step in range(5):
            alerts.tell("overflow", "no update", step=step)
        with replaced(alerts_module, "PERIOD", 0.0):
            alerts.tell("overflow", "no update", step=5)
        alerts.tell("overflow", "no update", step=6)
        alerts.close()
    assert [message["text"] for message in found.messages] == [
        "none_test: no update",
        "none_test: no update (4 more since the last alert of this kind)",
        "none_test: overflow: at the end of the run (1 more since the last alert of this kind)",
    ]


def test_heartbeats(tmp_path: Path) -> None:
    with receiving() as found:
        monitor = {"alert": {"light_monitor_address": found.url}}
        cfg = job(tmp_path, monitor=monitor, data__total_steps=5, data__empty_cache_and_diag_interval=4)
        run(cfg, tmp_path / "run")
    (beat,) = found.messages
    assert beat["type"] == "train_metrics" and beat["step"] == 3
    assert beat["loss"] == curve(tmp_path / "run")[3]["loss"]


def _nan_on_one(folder: Path, url: str) -> None:
    from evo_core.train.step import TrainStep

    original = TrainStep.forward_backward

    def broken(self: TrainStep, batch: Any, step: int, longest: int) -> Any:
        if step != 2 or dist.get_rank() != 1:
            return original(self, batch, step, longest)
        hook = next(self.model.parameters()).register_hook(lambda grad: grad * math.nan)
        try:
            return original(self, batch, step, longest)
        finally:
            hook.remove()

    TrainStep.forward_backward = broken  # type: ignore[method-assign]
    run(job(folder, monitor={"alert": {"webhooks": [url]}}, **CHANGES), folder / "run")


def test_a_nan_in_the_gradient_of_one_rank_is_told_once(tmp_path: Path) -> None:
    job(tmp_path)
    with receiving() as found:
        run_on_ranks(_nan_on_one, 2, tmp_path, found.url)
    (message,) = [message for message in found.messages if message["event"] == "overflow"]
    assert message["step"] == 2 and message["rank"] == 0
    assert "step 2 has no update: its gradient norm is nan" in message["text"]


def _fails_on_one(folder: Path, url: str) -> str:
    def fail(step: int) -> None:
        if step == 2 and dist.get_rank() == 1:
            raise ZeroDivisionError("of rank 1")

    before_each_step(fail)
    try:
        run(job(folder, monitor={"alert": {"webhooks": [url]}}, **CHANGES), folder / "run")
    except Exception as error:
        return type(error).__name__
    return "finished"


def test_an_exception_is_told_once(tmp_path: Path) -> None:
    job(tmp_path)
    with receiving() as found:
        assert run_on_ranks(_fails_on_one, 2, tmp_path, found.url) == ["RankFailed"] * 2
    assert told(found) == ["start", "exception"]
    assert "ZeroDivisionError: of rank 1" in found.messages[-1]["text"]


def test_a_file_of_alerts_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with receiving() as found:
        alert = {"webhooks": [found.url], "alert_file_path": str(tmp_path / "file" / "alerts.log")}
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            run(job(tmp_path, monitor={"alert": alert}), tmp_path / "run")
    assert caught.value.key == "monitor.alert.alert_file_path"


def _fails_in_reading(folder: Path, url: str) -> None:
    draw = Prefetch.batch

    def batch(self: Prefetch, step: int) -> Any:
        if step == 2 and dist.get_rank() == 1:
            return int("unreadable")
        return draw(self, step)

    with replaced(Prefetch, "batch", batch), pytest.raises(RankFailed):
        run(job(folder, monitor={"alert": {"webhooks": [url]}}, **CHANGES), folder / "run")


def test_an_error_is_told_by_the_rank_that_met_it_with_its_own_lines(tmp_path: Path) -> None:
    job(tmp_path)
    with receiving() as found:
        run_on_ranks(_fails_in_reading, 2, tmp_path, found.url)
    (message,) = [message for message in found.messages if message["event"] == "exception"]
    assert message["rank"] == 1 and "the run failed on rank 1 on " in message["text"]
    assert 'return int("unreadable")' in message["text"]


def test_a_secret_in_an_error_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t0ken-0f-the-store")
    with receiving() as found:
        file = tmp_path / "job.yaml"
        monitor = {"alert": {"webhooks": [found.url], "alert_file_path": str(tmp_path / "alerts")}}
        file.write_text(json.dumps(settings(tmp_path, job_name="${oc.env:TOKEN}", monitor=monitor, **CHANGES)))

        def batch(self: Prefetch, step: int) -> Any:
            raise RuntimeError(f"GET {found.url} with t0ken-0f-the-store: path /{Receiver.SECRET}")

        with replaced(Prefetch, "batch", batch), pytest.raises(RuntimeError):
            run(load_config(file), tmp_path / "run")
    written = (tmp_path / "alerts").read_bytes() + b"".join(found.bodies)
    assert told(found) == ["start", "exception"]
    assert "GET (not shown) with ${oc.env:TOKEN}: path (not shown)" in found.messages[-1]["text"]
    assert Receiver.SECRET.encode() not in written and b"t0ken" not in written


def test_an_event_behind_half_a_line_is_told_once(tmp_path: Path) -> None:
    path, event = tmp_path / "alerts", Event("end", "text", 1, 0.0, 0)
    path.write_text('{"attempt": "a", "id": "st')
    assert AlertFile(path, "a").first(event, "end")
    assert not AlertFile(path, "a").first(event, "end")


def test_a_signal(tmp_path: Path) -> None:
    draw = Prefetch.batch

    def batch(self: Prefetch, step: int) -> Any:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, step)

    with receiving() as found, replaced(Prefetch, "batch", batch):
        run(job(tmp_path, monitor={"alert": {"webhooks": [found.url]}}, **CHANGES), tmp_path / "run")
    assert told(found) == ["start", "signal"]
    assert "stopped by a signal at step 2" in found.messages[-1]["text"]


def test_a_number_that_is_none_is_null_in_a_heartbeat(tmp_path: Path) -> None:
    with receiving() as found:
        heart = Heartbeat(job(tmp_path, monitor={"alert": {"light_monitor_address": found.url}}), beats=True)
        heart.send(StepRecord(3, 7, 0, scores={"val/en_loss": math.nan, "val/en_acc": math.inf}))
        heart.close()
    (beat,) = found.messages
    assert beat["val/en_loss"] is None and beat["val/en_acc"] is None and beat["step"] == 3
