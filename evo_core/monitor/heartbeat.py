"""Heartbeats: the numbers of a step, posted at an interval to a monitor that watches over many runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from evo_core.checkpoint.about import finite
from evo_core.monitor.delivery import Delivery

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.train.record import StepRecord

KEY = "monitor.alert.light_monitor_address"


class Heartbeat:
    """Posts to the address of a job, if it has one, on the one rank that does.

    Args:
        beats: whether this rank does.
    """

    def __init__(self, cfg: TrainConfig, *, beats: bool) -> None:
        address = cfg.monitor.alert.light_monitor_address
        self._delivery = Delivery(KEY, address, newest=True) if address and beats else None
        self._job = {"job_name": cfg.shown.job_name, "job_id": os.environ.get("SLURM_JOB_ID")}

    def send(self, record: StepRecord) -> None:
        """Post what a step measured; numbers that are not finite become null. Returns at once."""
        if self._delivery is not None:
            body = {"type": "train_metrics", **self._job, **finite(record.fields())}
            self._delivery.send(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))

    def close(self) -> None:
        """Wait some seconds for the last one."""
        if self._delivery is not None:
            self._delivery.close()
