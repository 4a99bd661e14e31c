"""The settings of a training job, a file per block."""

from evo_core.config.schema.model import ModelConfig
from evo_core.config.schema.train_config import TrainConfig

__all__ = ["ModelConfig", "TrainConfig"]
