"""A trained model and instructions to a model that follows them."""

from __future__ import annotations

from prefect import flow
from prefect.states import State
from pydantic import Field

from flows.orchestration.flow import orchestrate
from flows.orchestration.owned_jobs import cancel_owned_jobs
from flows.orchestration.request import Request
from flows.pipeline.events import ArtifactRef


class Finetune(Request):
    """A fine-tuning run."""

    pipeline: str = Field("configs/pipelines/finetune-7b.yaml", title="Pipeline", description="the pipeline file")


@flow(name="finetune", on_cancellation=[cancel_owned_jobs], persist_result=False)
def finetune(request: Finetune = Finetune()) -> dict[str, ArtifactRef] | State:  # noqa: B008 (frozen)
    """Tokenize examples with their prompts masked, train a published model further on them, score it."""
    return orchestrate(request)
