"""What a path of weights means: a pipeline's artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evo_core.errors import CheckpointError
from evo_core.weights.recognise import locate


def write(path: Path, content: object = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({} if content is None else content))
    return path.parent


def test_an_artifact_means_the_model_of_the_attempt_that_counts(tmp_path: Path) -> None:
    write(tmp_path / "manifest.json", {"type": "model", "attempt": 2})
    write(tmp_path / "attempts" / "1" / "model" / "manifest.json")
    model = write(tmp_path / "attempts" / "2" / "model" / "manifest.json")
    write(tmp_path / "work" / "ckpt" / "10" / "manifest.json")
    assert locate(tmp_path) == ("evo", model)


def test_an_artifact_in_the_making_means_its_newest_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "attempts" / "1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="work/ckpt"):
        locate(tmp_path)
    write(tmp_path / "work" / "ckpt" / "9" / "manifest.json")
    newest = write(tmp_path / "work" / "ckpt" / "10" / "manifest.json")
    assert locate(tmp_path) == ("evo", newest)


def test_other_artifacts(tmp_path: Path) -> None:
    (tmp_path / "attempts" / "1").mkdir(parents=True)
    write(tmp_path / "manifest.json", {"type": "tokens", "attempt": 1})
    with pytest.raises(CheckpointError, match=r"this artifact holds no model \(its type: tokens\)"):
        locate(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="the artifact's manifest cannot be read"):
        locate(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="the artifact's manifest cannot be read"):
        locate(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(CheckpointError, match="the artifact's manifest cannot be read"):
        locate(tmp_path)
