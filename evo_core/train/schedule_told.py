"""What a run says of its schedules before its first step: that it ends on the way, or that its checkpoint had others.

Both may be meant, so both are warnings, each by the key of a setting.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from evo_core.checkpoint.manifest import CONFIG
from evo_core.checkpoint.saved_config import saved_config
from evo_core.config.types import describe
from evo_core.errors import UserError
from evo_core.storage.stage import stage
from evo_core.train.optimizer import make_schedules

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.storage.location import Location

log = logging.getLogger(__name__)


def say_unfinished_schedule(cfg: TrainConfig) -> None:
    """Where the rate will stand when a run ends before its schedule does, or never goes down; one rank calls it."""
    rate, total = cfg.lr_scheduler, cfg.data.total_steps
    if rate.kind == "wsd" and rate.decay_steps == 0:
        log.warning(
            "lr_scheduler.decay_ratio: %g of %d total_steps is not one step: the rate stays at %g",
            rate.decay_ratio,
            rate.total_steps,
            cfg.adam.lr,
        )
    of_update, _ = make_schedules(cfg)
    here, end = of_update(total), of_update(rate.total_steps)
    if rate.total_steps > total and here != end:
        log.warning(
            "lr_scheduler.total_steps: %d is more than data.total_steps %d: at the run's end the rate is %g, not yet "
            "%g (leave it out to follow data.total_steps)",
            rate.total_steps,
            total,
            here,
            end,
        )


def say_changed_schedule(cfg: TrainConfig, checkpoint: Location, updates: int) -> None:
    """Where a run that goes on in the schedules of a checkpoint of ours has others than it; one rank calls it.

    Args:
        checkpoint: its folder.
        updates: that were made there.
    """
    try:
        there = saved_config(stage(checkpoint, wanted=lambda path: path == CONFIG))
    except UserError as error:  # of another version, of a model type that is not here, or nowhere to copy it to
        log.warning("the schedules of this checkpoint are not compared with this run's: %s", error)
        return
    if say_differences(checkpoint, _differences(there, cfg)):
        (lr_there, beta2_there), (lr, beta2) = make_schedules(there), make_schedules(cfg)
        log.warning(
            "%s: the next update is at a rate of %g, %g in its run; beta2 %g, %g in its run",
            checkpoint,
            lr(updates),
            lr_there(updates),
            beta2(updates),
            beta2_there(updates),
        )


def say_differences(checkpoint: Location, settings: Mapping[str, tuple[object, object]]) -> bool:
    """Name the settings that a checkpoint's run had otherwise; tell whether there are some.

    Args:
        settings: by key, its value there and here.
    """
    different = {key: values for key, values in settings.items() if values[0] != values[1]}
    for key, (there, here) in different.items():
        log.warning("%s: %s is %s in its run and %s in this one", checkpoint, key, _shown(there), _shown(here))
    return bool(different)


def _differences(there: TrainConfig, here: TrainConfig) -> dict[str, tuple[object, object]]:
    """The settings of both schedules that are read by one of the two runs, with their values."""
    kinds = {there.lr_scheduler.kind, here.lr_scheduler.kind}
    unread: set[str] = set()
    if "wsd" not in kinds:
        unread |= {"decay_ratio", "decay_type"}
    if kinds == {"constant"}:
        unread |= {"eta_min"}
    settings: dict[str, tuple[object, object]] = {"adam.lr": (there.adam.lr, here.adam.lr)}
    if there.optimizer.name == here.optimizer.name == "muon":
        settings["optimizer.lr_ratio"] = there.optimizer.lr_ratio, here.optimizer.lr_ratio
    for block in ("lr_scheduler", "beta2_scheduler"):
        own, other = getattr(here, block), getattr(there, block)
        for name in type(own).model_fields:
            if name not in unread:
                settings[f"{block}.{name}"] = (getattr(other, name), getattr(own, name))
    return settings


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else describe(value)
