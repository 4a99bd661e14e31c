"""Raw text to a trained model, its scores and its generations."""

from __future__ import annotations

from prefect import flow
from prefect.states import State
from pydantic import Field

from flows.orchestration.flow import orchestrate
from flows.orchestration.owned_jobs import cancel_owned_jobs
from flows.orchestration.request import Request
from flows.pipeline.events import ArtifactRef


class Pretrain(Request):
    """A pre-training run."""

    pipeline: str = Field("configs/pipelines/pretrain-7b.yaml", title="Pipeline", description="the pipeline file")


@flow(name="pretrain", on_cancellation=[cancel_owned_jobs], persist_result=False)
def pretrain(request: Pretrain = Pretrain()) -> dict[str, ArtifactRef] | State:  # noqa: B008 (frozen)
    """Gather and tokenize text, shard it, pre-train a model on it, score it and let it write.

    What is in the store already is used again; the rest runs, and can be stopped and taken up at any point.
    """
    return orchestrate(request)
