"""What a flow is asked to run: one pydantic model, so that Prefect's page shows a form and checks it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import Name, load_pipeline
from tasks.store import Store, open_store


class Request(BaseModel):
    """A pipeline and how to run it. The same words as the options of `evo run`."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Run")

    pipeline: str = Field(title="Pipeline", description="the pipeline file, for example configs/pipelines/demo.yaml")
    set: list[str] = Field(
        default_factory=list,
        title="Overrides",
        description="KEY=VALUE over the file, for example steps.model.params.adam.lr=3e-4 or vars.seq_len=512",
    )
    targets: list[Name] = Field(
        default_factory=list, title="Targets", description="only these steps and what they need; empty: all"
    )
    force: list[Name] = Field(
        default_factory=list, title="Force", description="steps to make again although their artifact is there"
    )
    root: str | None = Field(
        None, title="Store", description="folder of the store; empty: $EVO_ROOT, else evo_runs in the working folder"
    )

    def store(self) -> Store:
        """The store that is asked for."""
        return open_store(self.root)

    def plan(self, store: Store) -> Plan:
        """What the run would do.

        Raises:
            ConfigError: anything that is wrong with the pipeline file, an override, a target.
        """
        pipeline = load_pipeline(Path(self.pipeline), self.set)
        return make_plan(pipeline, store, targets=self.targets, force=self.force)
