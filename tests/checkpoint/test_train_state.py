"""``train_state.json``: what this version writes it reads, and what older versions wrote too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint import TrainState
from evo_core.errors import CheckpointError

CURSORS = [{"epoch": 1, "dataset": {"shard": 2}, "taken": 3}, {"epoch": 0, "dataset": None, "taken": 9}]

OLDER: dict[str, Any] = {
    "step": 4,
    "tokens": 512,
    "updates": 3,
    "moments": 3,
    "skipped_updates": 1,
    "loss": 2.5,
    "scaler": {"scale": 65536.0},
    "data_digest": "abc",
    "batch_tokens": 128,
    "seed": 7,
    "folder": "/runs/a",
    "places": CURSORS,
}
"""As it was written before `data_cursors` had its name."""


def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    state = TrainState(step=4, loss=2.5, data_cursors=CURSORS)
    state.write(tmp_path)
    assert TrainState.read(tmp_path) == state
    assert "places" not in json.loads((tmp_path / "train_state.json").read_text())


def test_an_older_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "train_state.json").write_text(json.dumps(OLDER))
    state = TrainState.read(tmp_path)
    assert state.data_cursors == CURSORS
    assert (state.step, state.tokens, state.updates, state.skipped_updates, state.seed) == (4, 512, 3, 1, 7)


@pytest.mark.parametrize("text", ["", "4", "[]", '["places"]', '{"step": 1, "unheard_of": 2}'])
def test_what_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "train_state.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot read the training state"):
        TrainState.read(tmp_path)
