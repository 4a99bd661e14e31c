"""The folder of runs that tensorboard shows."""

from __future__ import annotations

from pathlib import Path

from flows.show.tensorboard import link_models
from tasks.store import Store
from tests.flows.show.conftest import Run


def test_a_finished_model_is_linked_once(finished: Run, tmp_path: Path) -> None:
    names = [f"{n}-{finished.plan.step(n).key[:12]}" for n in ("model", "other")]
    for _ in range(2):
        assert sorted(link_models(finished.store, tmp_path)) == sorted(names)
    assert (tmp_path / names[0] / "events").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


def test_a_training_that_runs_is_shown_by_its_newest_attempt(tmp_path: Path) -> None:
    for attempt in (1, 2, 10):
        (tmp_path / "store" / "artifacts" / "model-0123" / "work" / f"run-{attempt}" / "tensorboard").mkdir(
            parents=True
        )
    runs = tmp_path / "runs"
    runs.mkdir()
    assert link_models(Store(tmp_path / "store"), runs) == ["model-0123"]
    assert (runs / "model-0123").resolve().parent.name == "run-10"
