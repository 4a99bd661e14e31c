"""The rules of the monitor block. Messages never show an address, which is a secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evo_core.config.addresses import fault
from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig


def monitor_errors(config: TrainConfig) -> Iterator[ConfigError]:
    """What cannot be watched as it is written."""
    yield from _addresses(config)
    yield from _profiled_steps(config)


def _addresses(config: TrainConfig) -> Iterator[ConfigError]:
    alert = config.monitor.alert
    feishu = "monitor.alert.feishu_alert_address"
    if alert.enable_feishu_alert and not alert.feishu_alert_address:
        message = "is required where enable_feishu_alert is true"
        yield ConfigError(message, key=feishu, hint="write ${oc.env:NAME}, or set enable_feishu_alert to false")
    used = [(feishu, alert.feishu_alert_address)] if alert.enable_feishu_alert else []
    used += [(f"monitor.alert.webhooks.{number}", hook or " ") for number, hook in enumerate(alert.webhooks)]
    used += [("monitor.alert.light_monitor_address", alert.light_monitor_address)]
    for key, address in used:
        if address and (wrong := fault(address)) is not None:
            yield ConfigError(wrong, key=key, hint="write ${oc.env:NAME} for a variable such as https://host/path")


def _profiled_steps(config: TrainConfig) -> Iterator[ConfigError]:
    profile, total, key = config.monitor.profile, config.data.total_steps, "monitor.profile.steps"
    if profile is None or profile.steps is None:
        return
    steps = profile.steps
    if late := [step for step in steps if step >= total]:
        message = f"{late[0]} is never done: data.total_steps is {total}"
        yield ConfigError(message, key=key, hint=f"steps go from 0 to {total - 1}")
    if twice := [step for step in sorted(set(steps)) if steps.count(step) > 1]:
        yield ConfigError(f"{twice[0]} is named {steps.count(twice[0])} times", key=key, hint="name each step once")
