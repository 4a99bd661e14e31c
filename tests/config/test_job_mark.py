"""What checkpoints call their job: never a value that the environment gave."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.config import load_config
from tests.config.jobs import MODEL


def mark(folder: Path, name: str) -> str:
    (folder / "job.yaml").write_text(f"job_name: '{name}'\nmodel: {MODEL}\n")
    return load_config(folder / "job.yaml", ["ckpt.enable_save_ckpt=false"]).job_mark


def test_a_value_of_the_environment_is_not_in_it_and_tells_jobs_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = set()
    for value in ("hunter2-is-the-word", "hunter3-is-the-word"):
        monkeypatch.setenv("NAME", value)
        marks.add(found := mark(tmp_path, "of-${oc.env:NAME}"))
        assert found.startswith("of-${oc.env:NAME} ") and value not in found
    assert len(marks) == 2
    assert mark(tmp_path, "plain") == "plain"
