"""What an optimizer asks of the model and of how ranks share it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evo_core.config.families import SHIPPED
from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

_KEY = "optimizer.name"


def optimizer_errors(config: TrainConfig) -> Iterator[ConfigError]:
    """Muon needs the matrices of a decoder's blocks, each whole on every rank that computes with it."""
    if config.optimizer.name != "muon":
        return
    if config.model_type not in SHIPPED:
        message = f"muon knows which weights are matrices of blocks in shipped model types, not in {config.model_type}"
        yield ConfigError(message, key=_KEY, hint="write adamw")
    parallel = config.parallel
    tensor, weight, zero = parallel.tensor, parallel.weight, parallel.zero1
    share = "set it to 1 (parallel.zero1 shares the states, parallel.pipeline the layers), or write adamw"
    if tensor.mode == "isp" and weight.size > 1:
        yield _cuts("parallel.weight.size", weight.size, share)
    elif tensor.mode != "isp" and tensor.size > 1:
        isp = "take mode: isp with parallel.weight.size 1"
        hint = f"set it to 1 (parallel.zero1 shares the states), {isp}, or write adamw"
        yield _cuts("parallel.tensor.size", tensor.size, hint)
    if zero.fsdp and zero.size != 1:
        yield _cuts("parallel.zero1.fsdp", "true", "set it to false (parallel.zero1 shares the states), or write adamw")


def _cuts(key: str, value: object, hint: str) -> ConfigError:
    return ConfigError(f"muon updates whole matrices, and {key} {value} cuts them", key=_KEY, hint=hint)
