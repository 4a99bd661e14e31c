"""What kinds that only read a model share: a runtime that also says over how many ranks each layer of it is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evo_core.errors import ConfigError
from evo_core.nearest import divisors, nearest
from evo_core.parallel.degrees import Degrees
from tasks.kind import Facts, Kind
from tasks.launch.launcher import LaunchRuntime

P = TypeVar("P", bound=BaseModel)

_KEY = "runtime.parallel.tensor"


class InferenceParallel(BaseModel):
    """How the ranks share the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: int = Field(1, ge=1, description="ranks that share each layer")

    @field_validator("tensor", mode="before")
    @classmethod
    def _size(cls, given: Any) -> Any:
        """As in a training configuration the number, or a block with it."""
        return given["size"] if isinstance(given, dict) and set(given) == {"size"} else given


class InferenceRuntime(LaunchRuntime):
    """Where and how a model is read. Never part of an artifact's identity."""

    parallel: InferenceParallel = Field(InferenceParallel(), description="how the ranks share the model")


class InferenceKind(Kind[P, InferenceRuntime], Generic[P]):
    """A kind that reads the model of its input ``model``; the same whatever the layout."""

    runtime_type = InferenceRuntime

    def check(self, params: P, runtime: InferenceRuntime, facts: Mapping[str, Facts], where: str) -> None:
        """Refuse a layout that does not fit.

        Raises:
            ConfigError: the ranks, or the model's vocabulary, do not divide by it.
        """
        tensor, vocabulary = runtime.parallel.tensor, facts["model"].get("vocab_size")
        Degrees.of_inference(tensor, runtime.world_size, _KEY)
        if vocabulary is not None and vocabulary % tensor:
            fitting = [size for size in divisors(runtime.world_size) if vocabulary % size == 0]
            message = f"the model's vocabulary of {vocabulary} does not divide over {tensor} ranks"
            raise ConfigError(message, key=_KEY, hint=f"nearest on these ranks: {nearest(tensor, fitting)}")
