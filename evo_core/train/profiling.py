"""Profiles of some steps of a run, in its folder: what was computed when (``traces/``), and what lay in memory
(``memory/``).

Every rank of a layer does alike, so of each pipeline stage one rank leaves a trace: the first. Memory is every rank's
own. A recorded step is slower than others; what it computes is the same.
"""

from __future__ import annotations

import gzip
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evo_core.storage.files import write_file
from evo_core.train.held_memory import held_bytes, table

if TYPE_CHECKING:
    from torch.profiler import profile

    from evo_core.config import TrainConfig
    from evo_core.train.run import TrainRun

log = logging.getLogger(__name__)

SIXTH = 6
"""The step of a run that is recorded where none is named: InternEvo skips 3, waits for one and warms up in one."""

ALLOCATIONS = 1_000_000
"""Events that the record of a GPU's memory holds, at most; of more the first are lost."""


@contextmanager
def profiles(run: TrainRun) -> Iterator[Callable[[int], AbstractContextManager[Any]]]:
    """What each step of the run is to be done in, ``with profile(step)``; nothing where it has no profile."""
    steps = recorded_steps(run.cfg, run.state.step)
    if not steps:
        yield lambda _: nullcontext()
        return
    profiler = Profiler(run, steps)
    try:
        yield profiler.around
    finally:
        profiler.close()


def recorded_steps(cfg: TrainConfig, first: int) -> frozenset[int]:
    """The steps of which profiles are made, of those that are left to train; says so of others that are named.

    Args:
        first: the step that the run does next.
    """
    if cfg.monitor.profile is None:
        return frozenset()
    named, data = cfg.monitor.profile.steps, cfg.data
    if named is None:
        left = (step for step in range(first, data.total_steps) if not data.skips(step))
        chosen = list(islice(left, SIXTH))[-1:]
        if not chosen:
            log.warning("there is no profile: no step is left to train")
        return frozenset(chosen)
    for step in sorted(set(named)):
        if step < first:
            log.warning("there is no profile of step %d: the run goes on at step %d", step, first)
        elif data.skips(step):
            log.warning("there is no profile of step %d: data.skip_batches names it", step)
    return frozenset(step for step in named if step >= first and not data.skips(step))


class Profiler:
    """Records the steps that it was told of.

    Args:
        steps: their numbers.
    """

    def __init__(self, run: TrainRun, steps: frozenset[int]) -> None:
        mesh, ranks = run.mesh, run.ranks
        self._run, self._steps, self._rank = run, steps, ranks.rank
        self._cuda = ranks.device.type == "cuda"
        self._traces = mesh.data.rank == mesh.tensor.rank == 0
        self._warm: profile | None = None
        self._lost = False

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Do a step in the block: recorded if it is one of those, with a profiler that warms up if the next one is."""
        if step in self._steps:
            with self._recorded(step):
                yield
            return
        if step + 1 in self._steps:
            self._warm = self._warmed_up()
        yield

    def close(self) -> None:
        """The run ends; a profiler that had only warmed up is put away."""
        if self._warm is not None:
            self._warm.start_trace()
            self._warm.stop_trace()
            self._warm = None

    @contextmanager
    def _recorded(self, step: int) -> Iterator[None]:
        profiler, self._warm = self._warm or self._warmed_up(), None
        with ExitStack() as stack:
            if profiler is not None:
                profiler.start_trace()
                stack.callback(profiler.stop_trace)
                stack.enter_context(torch.profiler.record_function(f"ProfilerStep#{step}"))
            if self._cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)
                stack.callback(torch.cuda.memory._record_memory_history, enabled=None)
            yield
            if self._cuda:
                torch.cuda.synchronize()
                self._keep("memory", step, "pickle", lambda path: torch.cuda.memory._dump_snapshot(str(path)))
        self._write(step, profiler)

    def _warmed_up(self) -> profile | None:
        """A profiler that is ready to record; none on a rank that leaves no trace, unless its memory is known by it."""
        if not self._traces and self._cuda:
            return None
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda
        profiler = profile(activities=activities, profile_memory=True)
        profiler.prepare_trace()
        return profiler

    def _write(self, step: int, profiler: profile | None) -> None:
        run = self._run
        run.step.optimizer.settle()  # parameters that are still on their way have buffers of their own
        peak = torch.cuda.max_memory_allocated() if self._cuda else _most_allocated(profiler)
        peak_of = "allocated at the peak of the step" if self._cuda else "allocated in the step, at its peak"
        text = table(held_bytes(run.step.model, run.step.optimizer), step, self._rank, peak=peak, peak_of=peak_of)
        self._keep("memory", step, "txt", lambda path: write_file(path, text, durable=False))
        if self._traces and profiler is not None:
            self._keep("traces", step, "json.gz", lambda path: _write_trace(profiler, path))
        if not self._lost:
            log.info("profile of step %d: %s and %s", step, run.folder / "traces", run.folder / "memory")

    def _keep(self, folder: str, step: int, ending: str, write: Callable[[Path], None]) -> None:
        """Write a file of a step; one that cannot be written is said once and costs the run nothing else."""
        path = self._run.folder / folder / f"step-{step:05d}-rank-{self._rank:05d}.{ending}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except (OSError, RuntimeError) as error:
            if not self._lost:
                why = error.strerror if isinstance(error, OSError) else error
                log.warning("profiles are lost: %s cannot be written: %s; the run goes on", path, why)
            self._lost = True


def _write_trace(profiler: profile, path: Path) -> None:
    """Write a trace in Chrome's form.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".trace-") as folder:
        plain, packed = Path(folder, "trace.json"), Path(folder, "trace.json.gz")
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=5) as sink:
            shutil.copyfileobj(source, sink)
        packed.replace(path)


def _most_allocated(profiler: profile | None) -> int | None:
    """Bytes by which tensors on the CPU grew at most while a profiler recorded; None where it does not say."""
    results: Any = None if profiler is None or profiler.profiler is None else profiler.profiler.kineto_results
    if results is None:
        return None
    now = most = 0
    for event in sorted((each for each in results.events() if each.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
