"""New raw files to a new version of the corpus, nightly."""

from __future__ import annotations

from prefect import flow
from prefect.states import Completed, State
from pydantic import Field

from flows.orchestration.flow import orchestrate
from flows.orchestration.owned_jobs import cancel_owned_jobs
from flows.orchestration.request import Request
from flows.pipeline.events import ArtifactRef


class DataRefresh(Request):
    """A refresh of the corpus."""

    pipeline: str = Field("configs/pipelines/data-refresh.yaml", title="Pipeline", description="the pipeline file")


@flow(name="data-refresh", on_cancellation=[cancel_owned_jobs], persist_result=False)
def data_refresh(request: DataRefresh = DataRefresh()) -> dict[str, ArtifactRef] | State:  # noqa: B008 (frozen)
    """Look at the raw files and, where any came, changed or went, publish a new version of the corpus.

    A night without news ends as "Unchanged" and publishes nothing.
    """
    refs = orchestrate(request)
    if isinstance(refs, dict) and all(ref.action == "reused" for ref in refs.values()):
        return Completed(name="Unchanged", message="no raw file changed", data=refs)
    return refs
