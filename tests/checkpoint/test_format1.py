"""Checkpoints of format 1, which earlier versions wrote, are read for good: their weights, and training goes on.

``format1/*.zip`` hold the checkpoint of step 3 of one job (random data, bfloat16, so that the optimizer has master
values) as it was written on 1, 2 and 4 ranks. ``continues.json`` is what the version that wrote them made of each:
SHA-256 of each tensor's bytes, and the losses of steps 3 to 7 on one process with the model in three types.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from evo_core.checkpoint import load_model
from evo_core.checkpoint.tensors import stored_shapes
from evo_core.config import TrainConfig, load_config
from evo_core.weights import build, open_weights
from tests.ranks import run_on_ranks
from tests.train.jobs import losses, run

HERE = Path(__file__).parent / "format1"
CONTINUES = json.loads((HERE / "continues.json").read_text())


class Written(NamedTuple):
    """The checkpoint of step 3, in a save folder of its own, and what was made of it."""

    folder: Path
    expected: dict[str, Any]

    def job(self, dtype: str) -> TrainConfig:
        """The job that wrote it, saving where it is now, and so resumed from it."""
        changes = [f"model.dtype=torch.{dtype}", f"ckpt.save_ckpt_folder=local:{self.folder.parent}"]
        return load_config(self.folder / "config.yaml", changes)


@pytest.fixture(params=["one_rank", "two_ranks", "four_ranks"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    with zipfile.ZipFile(HERE / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path / "ckpt")
    folder = tmp_path / "ckpt" / "3"
    assert json.loads((folder / "manifest.json").read_text())["format"] == 1
    return Written(folder, CONTINUES[request.param])


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def test_its_weights_are_read_bit_for_bit(written: Written) -> None:
    model, tokenizer = load_model(written.folder)
    assert tokenizer is None
    assert {name: digest(tensor) for name, tensor in model.state_dict().items()} == written.expected["weights"]


def test_what_converts_them_reads_it_too(written: Written) -> None:
    """`open_weights` is what conversion, and starting a run from weights, read by."""
    made = build(open_weights(written.folder))
    assert {name: digest(tensor) for name, tensor in made.state_dict().items()} == written.expected["weights"]


def test_what_is_saved_next_is_of_format_2(written: Written, tmp_path: Path) -> None:
    before, folder = stored_shapes(written.folder / "optimizer"), written.folder.parent / "8"
    run_on_ranks(run, 2, written.job("bfloat16"), tmp_path / "run")
    weights, states = stored_shapes(folder / "model"), stored_shapes(folder / "optimizer")
    assert json.loads((folder / "manifest.json").read_text())["format"] == 2
    assert states == {
        f"{kind}.{name}": shape for kind in ("exp_avg", "exp_avg_sq", "master") for name, shape in weights.items()
    }
    assert before == {name: (math.prod(shape),) for name, shape in states.items()}
    load_model(folder)


@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 1e-3), ("float32", 1e-6)])
def test_one_process_goes_on_with_the_same_losses(
    written: Written, tmp_path: Path, dtype: str, rounding: float
) -> None:
    """In bfloat16 from the master values, in float32 from the weights and the moments. CPUs of two makers round
    otherwise, so bits are not compared with what was recorded elsewhere."""
    result = run(written.job(dtype), tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(written.expected[dtype], rel=rounding)
    assert result.checkpoint == written.folder.parent / "8"


@pytest.mark.parity
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_goes_on_with_the_same_losses(written: Written, tmp_path: Path, ranks: int) -> None:
    run_on_ranks(run, ranks, written.job("float64"), tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(written.expected["float64"], rel=1e-12, abs=0)
