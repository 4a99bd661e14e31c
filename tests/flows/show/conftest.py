"""A finished run of the small pipeline."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.pipeline.engine import run_plan
from flows.pipeline.events import ArtifactRef
from flows.pipeline.plan import Plan
from flows.show.observers import Observers
from tasks.store import Store
from tests.flows.orchestration.small import Small


@dataclass
class Run:
    plan: Plan
    refs: Mapping[str, ArtifactRef]
    store: Store


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    small = Small(tmp_path_factory.mktemp("small"))
    plan = small.plan()
    return Run(plan, run_plan(plan, small.store, Observers(), threading.Event()), small.store)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)
