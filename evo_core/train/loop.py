"""The training loop, top to bottom."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.monitor.monitoring import monitoring
from evo_core.parallel import process_group
from evo_core.parallel.mesh import make_mesh
from evo_core.parallel.one_job import Setting, check_one_job, options_of, settings_of
from evo_core.train.memory import FIRST, clean_up, clean_up_interval, collected_by_hand, say_memory
from evo_core.train.profiling import profiles
from evo_core.train.reading import Reading, raise_unread
from evo_core.train.run import TrainRun, make_run
from evo_core.train.run_log import logging_of_run

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.parallel.process_group import Ranks
    from evo_core.storage.location import Location
    from evo_core.train.record import StepRecord
    from evo_core.train.start import Start

log = logging.getLogger(__name__)

_ENDS = {None: "finished", "signal": "stopped by a signal", "stop file": "ended by the stop file"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: steps done.
        loss: of the last step; None where none was trained on.
        checkpoint: the newest one of this run; None where nothing is saved.
        stopped: whether a signal ended it before its time.
    """

    step: int
    loss: float | None
    checkpoint: Location | None
    stopped: bool = False


def train(
    cfg: TrainConfig, *, folder: Path | None = None, init: Start | None = None, ranks: Ranks | None = None
) -> TrainResult:
    """Run a training job to its end, from its newest checkpoint if it has one.

    Args:
        cfg: the job.
        folder: where its log and curve go; None goes on in the folder of the resumed run, else makes
            ``RUN/<job name>/<date>``.
        init: a checkpoint to start from where the run has none of its own to resume.
        ranks: this process among all; None joins them by the environment.

    Raises:
        UserError: configuration, data or checkpoint do not fit.
    """
    if ranks is None:
        timeout = timedelta(seconds=cfg.monitor.collective_timeout)
        with process_group.ranks(timeout=timeout, catch_stop=True) as joined:
            return train(cfg, folder=folder, init=init, ranks=joined)
    check_one_job(settings_of(cfg) | _options(init))
    cfg.check_world(ranks.world_size)
    mesh = make_mesh(cfg.degrees(ranks.world_size), device_type=ranks.device.type, timeout=ranks.timeout)
    with logging_of_run(speaks=mesh.is_log_rank) as lines, monitoring(cfg, ranks, mesh) as monitor:
        return run_steps(make_run(cfg, folder, init, ranks, mesh, lines, monitor))


def _options(init: Start | None) -> dict[str, Setting]:
    """What ``--init`` and the options about it say, for the comparison over ranks."""
    if init is None:
        return {}
    return options_of(
        init=init.checkpoint,
        init_content=init.content,
        init_allow_missing=init.allow.missing,
        init_allow_unexpected=init.allow.unexpected,
    )


def run_steps(run: TrainRun) -> TrainResult:
    """Train until the last step, or until a signal or the stop file ends the run; every rank must call it."""
    state, saving, data = run.state, run.saving, run.cfg.data
    first, end = run.state.step, None
    with (
        collected_by_hand(),
        run.batches() as batches,
        run.metric_log() as metric_log,
        profiles(run) as profile,
        saving.settled(),
    ):
        reading = Reading(run.cfg, run.mesh, batches)
        while state.step < data.total_steps and end is None:
            began = time.perf_counter()
            with profile(state.step):
                batch = reading.batch(state.step)
                if data.skips(state.step):
                    raise_unread(reading.unread)  # there are no sums that could tell it
                    record = run.step.skip(batch, state)
                else:
                    record = run.step.train(batch, state, saving.asked(), began=began, unread=reading.unread)
            metric_log.show(record)
            run.monitor.saw(record, run.step.timers)
            state.step, state.tokens = state.step + 1, record.tokens

            if data.valid_every and state.step % data.valid_every == 0 and not record.asked.stop:
                record = _evaluated(run, record)
            metric_log.write(record)

            todo = saving.decide(state.step, record.asked)
            if todo.save:
                saving.save(state, record, batches, snapshot=todo.save == "snapshot")
            if state.step % clean_up_interval(run.cfg) == 0:
                clean_up(run.ranks, run.mesh.world)
                run.monitor.at_interval(record)
            elif state.step - first <= FIRST:
                say_memory(run.ranks)
            end = todo.end
        run.step.optimizer.settle()  # whoever has the model reads it next, and ranks leave together
        saving.finish()

    log.info("%s at step %d of %d, newest checkpoint: %s", _ENDS[end], state.step, data.total_steps, saving.newest)
    run.monitor.ended(end, _ENDS[end], state.step, state.loss)
    return TrainResult(state.step, state.loss, saving.newest, stopped=end == "signal")


def _evaluated(run: TrainRun, record: StepRecord) -> StepRecord:
    """The record of a step with the held-out scores after it."""
    began = time.perf_counter()
    scores = run.step.evaluate()
    shown = ",".join(f"{name}={value:.4f}" for name, value in scores.items())
    log.info("evaluation after step=%d in %.1f s: %s", record.step, time.perf_counter() - began, shown)
    return replace(record, scores=scores)
