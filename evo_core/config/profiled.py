"""What ``--profiling`` makes of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evo_core.config.schema.monitor import ProfileConfig

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig


def profiled(cfg: TrainConfig) -> TrainConfig:
    """The job with a profile: of the steps that it names, else of the one that `ProfileConfig` chooses."""
    if cfg.monitor.profile is not None:
        return cfg
    monitor = cfg.monitor.model_copy(update={"profile": ProfileConfig()})
    return cfg.model_copy(update={"monitor": monitor})
