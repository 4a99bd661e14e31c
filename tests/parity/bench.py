"""Jobs of two ranks with a mistake in them, compared with the job on one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from evo_core.config import TrainConfig
from evo_core.parity.deviation import FLOAT64_BAR
from evo_core.parity.job import VOCAB_SIZE, Settings, job, small_model, training, write_documents
from evo_core.parity.layouts import MODELS
from evo_core.parity.matrix import compared
from evo_core.parity.measure import Seen, measure, mesh_of, model_of, steps_of
from evo_core.parity.pool import Pool
from evo_core.parity.whole import Step, joined

Break = Callable[..., Any]
"""Takes the model and what else the mistake needs; a context in which the rank then trains, or nothing."""


class Bench:
    """One pool of two ranks for all tests, and the steps of one process by model.

    Args:
        folder: has the documents.
        layers: of every model.
    """

    def __init__(self, folder: Path, layers: int = 2) -> None:
        self._folder, self._layers, self._references = folder, layers, dict[str, list[Step]]()
        self.ranks, self.alone = Pool(2, timeout=60.0), Pool(1, timeout=60.0)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.ranks.close()
        self.alone.close()

    def job(self, model: str, parallel: Settings, *ways: Settings) -> TrainConfig:
        short = {"data": {"total_steps": 2}, "model": {"num_layers": self._layers}}
        of_model = MODELS[model] if model else {}
        parallel = dict(parallel)
        chunks = {"model": {"num_chunks": parallel.pop("chunks", 1)}}
        blocks = small_model(), of_model, short, {"parallel": parallel}, chunks, *ways
        return job(training(self._folder), *blocks, dtype="float64")

    def why(self, model: str, parallel: Settings, mistake: Break, *args: Any) -> str | None:
        """What is said of a layout with a mistake; None where it is not found.

        Args:
            parallel: the block, with ``chunks`` beside what it has.
        """
        if model not in self._references:
            self._references[model] = joined(self.alone.run(measure, self.job(model, {})))
        seen = self.ranks.run(broken, self.job(model, parallel), mistake, args)
        return compared(self._references[model], seen, FLOAT64_BAR)[1]


def broken(cfg: TrainConfig, mistake: Break, args: tuple[Any, ...]) -> list[Seen]:
    mesh = mesh_of(cfg)
    model = model_of(cfg, mesh)
    with mistake(model, *args) or nullcontext():
        return steps_of(cfg, mesh, model)


def on_documents(folder: Path, layers: int = 2) -> Iterator[Bench]:
    """A bench with documents in that folder, for a fixture."""
    write_documents(folder, VOCAB_SIZE)
    with Bench(folder, layers) as bench:
        yield bench


def nothing(model: nn.Module) -> None:
    """A job as it should be."""
