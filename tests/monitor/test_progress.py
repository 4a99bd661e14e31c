"""What counts as progress of a run: of this rank, of a thread that it waits for, of another rank."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from evo_core import pulse
from evo_core.checkpoint.background import BackgroundSaves
from evo_core.checkpoint.staging import Staged
from evo_core.checkpoint.tensors import write_tensors
from evo_core.config.schema.monitor import MARGIN, MonitorConfig
from evo_core.monitor.job_progress import JobProgress
from evo_core.storage.files import link_tree
from tests.ranks import run_on_ranks
from tests.train.jobs import job, run


def test_a_thread_beside_counts_only_while_it_is_waited_for() -> None:
    def beside() -> None:
        thread = threading.Thread(target=pulse.beat)
        thread.start()
        thread.join()

    before = pulse.beats()
    beside()
    assert pulse.beats() == before
    with pulse.waiting_for_others():
        waiting = pulse.beats()
        beside()
        assert pulse.beats() != waiting
    pulse.beat()
    assert pulse.beats() != before


def test_a_run_in_another_thread_makes_progress(tmp_path: Path) -> None:
    def training() -> None:
        before = pulse.beats()
        run(job(tmp_path, ckpt__enable_save_ckpt=False), tmp_path / "run")
        assert pulse.beats()[0] >= before[0] + 8
        done.append(True)

    done: list[bool] = []
    try:
        thread = threading.Thread(target=training)
        thread.start()
        thread.join()
    finally:
        pulse.count_this_thread()
    assert done


def test_files_and_tensors_that_are_written_are_progress(tmp_path: Path) -> None:
    def body() -> None:
        seen = [pulse.beats()[0]]
        write_tensors(tmp_path / "tensors", {name: torch.ones(3) for name in "abc"})
        seen.append(pulse.beats()[0])
        link_tree(tmp_path / "tensors", tmp_path / "copy")
        seen.append(pulse.beats()[0])
        assert seen[1] >= seen[0] + 3 and seen[2] > seen[1], seen

    run_on_ranks(body, 1)


def test_a_checkpoint_in_the_background_is_progress_once_it_is_waited_for() -> None:
    def body() -> None:
        saves, goes_on = BackgroundSaves(), threading.Event()

        def write(staged: Staged, group: dist.ProcessGroup) -> Path:
            pulse.beat()
            goes_on.wait()
            for _ in range(200):
                pulse.beat()
                time.sleep(0.005)
            return Path("/")

        before = pulse.beats()
        saves.start({}, write)
        time.sleep(0.1)
        assert pulse.beats() == before

        seen = set()

        def look() -> None:
            for _ in range(20):
                seen.add(pulse.beats())
                time.sleep(0.01)

        watched = threading.Thread(target=look)
        goes_on.set()
        watched.start()
        saves.wait()
        watched.join()
        assert len(seen) > 5, seen

    run_on_ranks(body, 1)


def test_the_progress_of_one_rank_is_seen_by_all(tmp_path: Path) -> None:
    """Two ranks make none themselves: they see the third's, and that it has stopped."""
    period = 0.05

    def body() -> tuple[int, int]:
        store = dist.FileStore(str(tmp_path / "store"), 3)
        progress = JobProgress(store, period, pulse.beats)
        time.sleep(2 * period)
        for _ in range(10):
            if dist.get_rank() == 2:
                pulse.beat()
            time.sleep(2 * period)
        dist.barrier()
        time.sleep(6 * period)
        seen = progress.seen()
        time.sleep(6 * period)
        return seen, progress.seen()

    for seen, later in run_on_ranks(body, 3):
        assert later == seen > 2, (seen, later)


@pytest.mark.parametrize(
    ("stuck_after", "start_timeout"), [("30m", "1h"), ("3h", "1h"), ("3h", None), (None, "2h"), (4, 5), (None, None)]
)
def test_a_collective_waits_longer_than_the_watchdog(stuck_after: object, start_timeout: object) -> None:
    cfg = MonitorConfig.model_validate({"stuck_after": stuck_after, "start_timeout": start_timeout})
    for limit in (cfg.stuck_after, cfg.start_timeout):
        assert limit is None or cfg.collective_timeout >= limit + MARGIN
