"""Every test of launching runs in the repository's root, from where jobs find the stand-in module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.launch.runs import ROOT


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A key's state folder."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder
