"""The ``monitor`` block: who is told what while a run goes on, and when one that hangs is ended."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from pydantic import BeforeValidator, Field

from evo_core.config.durations import OptionalDuration
from evo_core.config.fields import Block, block, execution, optional_block
from evo_core.config.types import NonNegativeInt, PositiveInt, to_float

MARGIN = 300.0
"""Seconds for which a collective waits longer than the watchdog, so that stacks are written before it fails."""

UNWATCHED = 1800.0
"""Seconds for which a collective waits where nobody watches, and at least where the watchdog ends what hangs sooner:
others may wait for one rank that goes on saving."""


def _to_ratio(value: object) -> float | None:
    return None if value is None else to_float(value)


class AlertConfig(Block):
    """Messages to people and heartbeats to a monitor; the addresses are secrets."""

    enable_feishu_alert: bool = execution(False, "Send alerts to a Feishu group.")
    feishu_alert_address: str | None = execution(None, "Its web hook; write ${oc.env:NAME}, it is a secret.")
    webhooks: tuple[str, ...] = execution(
        (), "Other web hooks that get every alert, hooks.slack.com in Slack's form; write ${oc.env:NAME}."
    )
    light_monitor_address: str | None = execution(None, "Where heartbeats are posted; write ${oc.env:NAME}.")
    alert_file_path: str | None = execution(
        None, "File that keeps an event from being told by several ranks; None: in the run's folder."
    )
    loss_spike: Annotated[float | None, Gt(1), BeforeValidator(_to_ratio)] = execution(
        1.5, "A loss this many times the step's before is told; null tells none."
    )

    @property
    def addresses(self) -> dict[str, str]:
        """Where alerts go: dotted key to address."""
        named = {"monitor.alert.feishu_alert_address": self.feishu_alert_address} if self.enable_feishu_alert else {}
        named |= {f"monitor.alert.webhooks.{number}": hook for number, hook in enumerate(self.webhooks)}
        return {key: address for key, address in named.items() if address}


class TensorboardConfig(Block):
    """Tensorboard's writer."""

    queue_max_length: PositiveInt = execution(1, "Events held back before they are written.")


class ProfileConfig(Block):
    """Steps that torch's profiler looks at."""

    steps: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = execution(
        None, "Their numbers, as in the log; None: the sixth of the run, or the last of a shorter one."
    )


class MonitorConfig(Block):
    """Who is told what while a run goes on, and when one that hangs is ended."""

    alert: AlertConfig = block(AlertConfig, "Messages and heartbeats.")
    tensorboard: TensorboardConfig = block(TensorboardConfig, "Tensorboard's writer.")
    profile: ProfileConfig | None = optional_block("Traces and memory of some steps.")
    stuck_after: OptionalDuration = execution("30m", "Without a step for so long a run is ended; null waits for ever.")
    start_timeout: OptionalDuration = execution("1h", "The same until its first step is done.")

    @property
    def collective_timeout(self) -> float:
        """Seconds after which a collective fails on its own."""
        limits = [limit for limit in (self.stuck_after, self.start_timeout) if limit is not None]
        return max(UNWATCHED, *(limit + MARGIN for limit in limits)) if limits else UNWATCHED
