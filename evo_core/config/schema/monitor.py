"""The ``monitor`` block: who is told what while a run goes on."""

from __future__ import annotations

from evo_core.config.fields import Block, block, execution
from evo_core.config.types import PositiveInt


class AlertConfig(Block):
    """Messages to a chat and heartbeats."""

    enable_feishu_alert: bool = execution(False, "Send alerts to a Feishu group.")
    feishu_alert_address: str | None = execution(None, "Its web hook; write ${oc.env:NAME}, it is a secret.")
    light_monitor_address: str | None = execution(None, "Where heartbeats are posted.")
    alert_file_path: str | None = execution(None, "File that keeps an alert from being sent by several ranks.")


class TensorboardConfig(Block):
    """Tensorboard's writer."""

    queue_max_length: PositiveInt = execution(1, "Events held back before they are written.")


class MonitorConfig(Block):
    """Who is told what while a run goes on."""

    alert: AlertConfig = block(AlertConfig, "Messages and heartbeats.")
    tensorboard: TensorboardConfig = block(TensorboardConfig, "Tensorboard's writer.")
