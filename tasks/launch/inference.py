"""What kinds that only read a model share: a runtime that also says how the ranks hold it together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evo_core.config.pipeline_rules import too_few_layers
from evo_core.errors import ConfigError
from evo_core.nearest import divisors, nearest
from evo_core.parallel.degrees import Degrees
from tasks.kind import Facts, Kind
from tasks.launch.launcher import LaunchRuntime

P = TypeVar("P", bound=BaseModel)

_KEYS = ("runtime.parallel.tensor", "runtime.parallel.pipeline")


class InferenceParallel(BaseModel):
    """How the ranks share the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: int = Field(1, ge=1, description="ranks that share each layer")
    pipeline: int = Field(1, ge=1, description="stages that the layers are dealt out over")

    @field_validator("tensor", "pipeline", mode="before")
    @classmethod
    def _size(cls, given: Any) -> Any:
        """As in a training configuration the number, or a block with it."""
        return given["size"] if isinstance(given, dict) and set(given) == {"size"} else given

    @property
    def options(self) -> tuple[str, ...]:
        """It on the command line of `evo_core.evaluate` and `evo_core.generate`."""
        return ("--tensor", str(self.tensor), "--pipeline", str(self.pipeline))


class InferenceRuntime(LaunchRuntime):
    """Where and how a model is read. Never part of an artifact's identity."""

    parallel: InferenceParallel = Field(InferenceParallel(), description="how the ranks share the model")


class InferenceKind(Kind[P, InferenceRuntime], Generic[P]):
    """A kind that reads the model of its input ``model``; the same whatever the layout."""

    runtime_type = InferenceRuntime

    def check(self, params: P, runtime: InferenceRuntime, facts: Mapping[str, Facts], where: str) -> None:
        """Refuse a layout that does not fit.

        Raises:
            ConfigError: the ranks, or the model's vocabulary, do not divide by it, or a stage would be without layers.
        """
        tensor, pipeline = runtime.parallel.tensor, runtime.parallel.pipeline
        vocabulary, layers = facts["model"].get("vocab_size"), _layers(facts["model"])
        Degrees.of_inference(tensor, pipeline, runtime.world_size, _KEYS)
        if vocabulary is not None and vocabulary % tensor:
            fitting = [size for size in divisors(runtime.world_size // pipeline) if vocabulary % size == 0]
            message = f"the model's vocabulary of {vocabulary} does not divide over {tensor} ranks"
            raise ConfigError(message, key=_KEYS[0], hint=f"nearest on these ranks: {nearest(tensor, fitting)}")
        if layers is not None:
            error = too_few_layers(layers, pipeline, _KEYS[1], divisors(runtime.world_size // tensor))
            if error is not None:
                raise error


def _layers(model: Facts) -> int | None:
    """Blocks of a model, where that is known before it is there."""
    network: Mapping[str, Any] = model.get("network") or {}
    return network.get("model", {}).get("num_layers")
