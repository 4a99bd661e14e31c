"""How far a run of InternEvo was, read from its ``context.pt`` and its scheduler's file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.errors import CheckpointError
from evo_core.optim.schedules import LearningRate
from evo_core.weights.internevo.progress import Progress, Schedule, read_progress
from tests.weights.internevo_files import write_context, write_scheduler

SHAPE = {"total_steps": 100, "warmup": 10, "lr": 1e-3, "eta_min": 1e-5}


def folder_at(folder: Path, position: int, name: str = "schedulder.pt", **context: Any) -> Path:
    write_context(folder, **{"batches": 43, "updates": 40, "tokens": 43 * 512, **context})
    write_scheduler(folder, position=position, name=name, **SHAPE)
    return folder


@pytest.mark.parametrize("name", ["schedulder.pt", "scheduler.pt"])
def test_what_is_taken(tmp_path: Path, name: str) -> None:
    assert read_progress(folder_at(tmp_path, 40, name)) == Progress(
        step=43, tokens=43 * 512, skipped_updates=3, updates=40, schedule=Schedule(1e-3, 10, 100, 1e-5)
    )


@pytest.mark.parametrize(
    ("position", "made", "taken"),
    [
        *((0, 0, 0), (7, 7, 7), (9, 9, 9), (10, 10, 10), (11, 11, 11), (100, 100, 100)),
        *((8, 7, 7), (10, 9, 9), (41, 40, 40)),
        *((42, 40, 42), (25, 40, 25), (0, 40, 0)),
    ],
)
def test_position_in_the_schedules(tmp_path: Path, position: int, made: int, taken: int) -> None:
    """In the warm-up, at its end and behind it; one update too far after a resume; and a schedule of its own."""
    assert read_progress(folder_at(tmp_path, position, batches=made + 3, updates=made)).updates == taken


def test_the_position_gives_torchs_rate(tmp_path: Path) -> None:
    """The nested schedulers themselves, stepped as InternEvo does, are at the rate that the position means here."""

    class Warmup(torch.optim.lr_scheduler.LRScheduler):
        def __init__(self, optimizer: Any, warmup: int, after: Any) -> None:
            self.warmup_epochs, self.after, self.finished = warmup, after, False
            super().__init__(optimizer)

        def get_lr(self) -> list[float]:
            if self.last_epoch >= self.warmup_epochs:
                self.after.base_lrs, self.finished = self.base_lrs, True
                return list(self.base_lrs)
            return [(self.last_epoch + 1) / self.warmup_epochs * lr for lr in self.base_lrs]

        def step(self, epoch: int | None = None) -> None:
            if self.finished:
                self.after.step()
                self._last_lr = self.after.get_last_lr()
            else:
                super().step(epoch)

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    made = Warmup(optimizer, 10, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90, eta_min=1e-5))
    rate = LearningRate(lr=1e-3, total_steps=100, warmup_ratio=0.1, eta_min=1e-5)
    for update in range(60):
        state = {name: value for name, value in vars(made).items() if name not in ("optimizer", "after")}
        inner = {name: value for name, value in made.after.state_dict().items() if isinstance(value, int | float)}
        plain = {name: state[name] for name in ("warmup_epochs", "finished", "last_epoch", "base_lrs")}
        torch.save(plain | {"after_scheduler_dict": inner}, tmp_path / "schedulder.pt")
        write_context(tmp_path, batches=update + 1, updates=update, tokens=0)
        assert read_progress(tmp_path).updates == update
        assert made.get_last_lr()[0] == pytest.approx(rate(update), rel=1e-9)
        optimizer.step()
        made.step()


def test_a_context_of_an_older_version(tmp_path: Path) -> None:
    """Without a number of updates, the scheduler's is the only one."""
    assert read_progress(folder_at(tmp_path, 41, step_count=None)).updates == 41


@pytest.mark.parametrize("name", ["context.pt", "schedulder.pt"])
def test_what_lacks_or_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    content = (folder_at(tmp_path, 40) / name).read_bytes()
    for wrong in (b"", content[:100], content[: len(content) // 2], content.replace(b"PK", b"QQ"), b"no pickle"):
        (tmp_path / name).write_bytes(wrong)
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read as plain settings"):
            read_progress(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: is missing, and with it .*write content: \[.model.\]"):
        read_progress(tmp_path)


@pytest.mark.parametrize("value", [None, -1, 1.5, True, "7", [3]])
def test_what_is_no_count_is_named(tmp_path: Path, value: Any) -> None:
    folder_at(tmp_path, 40, num_consumed_tokens=value)
    with pytest.raises(CheckpointError, match=r"context\.pt: num_consumed_tokens: (is missing|.* is no count)"):
        read_progress(tmp_path)
    folder_at(tmp_path, 40)
    torch.save({"last_epoch": 3, "base_lrs": [0.1]}, tmp_path / "schedulder.pt")
    with pytest.raises(CheckpointError, match=r"schedulder\.pt: is no scheduler of InternEvo"):
        read_progress(tmp_path)
    torch.save({"last_epoch": value, "after_scheduler_dict": {}}, tmp_path / "schedulder.pt")
    with pytest.raises(CheckpointError, match=r"schedulder\.pt: warmup_epochs: is missing"):
        read_progress(tmp_path)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["context.pt", "schedulder.pt"])
def test_no_code_in_it_runs(tmp_path: Path, name: str) -> None:
    folder_at(tmp_path, 40)
    torch.save({"batch_count": Evil(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"it names posix\.mkdir, .* it may be code, and was not run"):
        read_progress(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read"):
        read_progress(tmp_path)
    assert not (tmp_path / "ran").exists()
