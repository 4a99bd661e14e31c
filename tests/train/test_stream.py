"""Training on a Hugging Face data set: stopped and resumed, the losses are those of the run that nobody stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  once, before ranks are forked: it takes seconds
import numpy as np
import pytest

from evo_core.checkpoint import TrainState
from evo_core.config import TrainConfig
from evo_core.data.loader import hf_stream
from evo_core.data.tokenize.tokenizers import train_sentencepiece
from evo_core.errors import CheckpointError
from tests.ranks import run_on_ranks
from tests.train.jobs import before_each_step, curve, job, losses, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines and a tokenizer for them."""
    random = np.random.RandomState(0)
    words = [f"{a}{b}" for a in ("re", "un", "pre", "over") for b in ("act", "do", "run", "view")]
    texts = [" ".join(words[i] for i in random.randint(len(words), size=random.randint(2, 14))) for _ in range(90)]
    folder = tmp_path_factory.mktemp("stream")
    (folder / "data").mkdir()
    for part in range(3):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[part::3])
        (folder / "data" / f"part-{part}.jsonl").write_text(lines)
    train_sentencepiece(texts, folder / "tokenizer.model", vocab_size=290)
    return folder


def stream_job(tmp_path: Path, folder: Path, **changes: Any) -> TrainConfig:
    data = {
        "data__type": "hf",
        "data__train_folder": str(folder / "data"),
        "data__tokenizer_path": str(folder / "tokenizer.model"),
        "model__dtype": "torch.float32",
        "model__vocab_size": 290,
        "ckpt__checkpoint_every": 4,
        "data__total_steps": 12,
    }
    return job(tmp_path, **(data | changes))


def interrupted(cfg: TrainConfig, folder: Path, at: int) -> None:
    """Train until the interrupt before a step; a run that ends so leaves its process."""

    def interrupt(step: int) -> None:
        if step == at:
            raise KeyboardInterrupt

    before_each_step(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(cfg, folder)


def test_a_resumed_run_has_the_losses_of_the_whole_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_stream, "_TEXTS", 7)  # so that checkpoints lie in the middle of what was tokenized
    whole = stream_job(tmp_path, folder, ckpt__save_ckpt_folder=str(tmp_path / "whole"), data__num_worker=0)
    run_on_ranks(run, 2, whole, tmp_path / "a")
    cfg = stream_job(tmp_path, folder)
    run_on_ranks(interrupted, 2, cfg, tmp_path / "b", 6)
    assert len(curve(tmp_path / "b")) < 12
    assert len(TrainState.read(tmp_path / "ckpt" / "4").data_cursors) == 2
    run_on_ranks(run, 2, cfg, tmp_path / "b")
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert len(losses(tmp_path / "a")) == 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> list[float]:
    """The losses of a run on two ranks that nobody stopped."""
    place = tmp_path_factory.mktemp("whole")
    cfg = stream_job(place, folder, model__dtype="torch.float64", ckpt__enable_save_ckpt=False)
    run_on_ranks(run, 2, cfg, place / "run")
    return losses(place / "run")


PLAIN: dict[str, Any] = {}
TENSOR = {"tensor": {"size": 2, "mode": "msp"}}
STAGES = {"pipeline": {"size": 2}}


@pytest.mark.parametrize(
    ("before", "after"),
    [(TENSOR, STAGES), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((STAGES, PLAIN), (PLAIN, TENSOR)))],
    ids=["tensor, stages", "stages, plain", "plain, tensor"],
)
def test_it_goes_on_at_another_layout(
    tmp_path: Path,
    folder: Path,
    whole: list[float],
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, Any],
    after: dict[str, Any],
) -> None:
    """A cursor is one of a data-parallel rank, into however many tensor ranks and stages that is cut."""
    monkeypatch.setattr(hf_stream, "_TEXTS", 7)

    def layout(parallel: dict[str, Any]) -> tuple[int, TrainConfig]:
        parallel = {"zero1": {"size": -1}, **parallel}
        cfg = stream_job(tmp_path, folder, model__dtype="torch.float64", parallel=parallel)
        return (4 if len(parallel) > 1 else 2), cfg

    run_on_ranks(interrupted, *layout(before), tmp_path / "run", 6)
    assert len(TrainState.read(tmp_path / "ckpt" / "4").data_cursors) == 2
    run_on_ranks(run, *layout(after), tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(whole, rel=1e-12, abs=0)
    assert len(whole) == 12


def test_another_number_of_ranks_is_refused(tmp_path: Path, folder: Path) -> None:
    run_on_ranks(run, 2, stream_job(tmp_path, folder, data__total_steps=4), tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"each of 2 data-parallel ranks has its place .* here are 1 of them \(go on with 2"
    ):
        run(stream_job(tmp_path, folder, data__total_steps=6), tmp_path / "run")
