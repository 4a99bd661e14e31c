"""Which code this is: only a repository that the code is a part of says so."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from evo_core.code_version import evo_version, git_state, git_state_of

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b")


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *IDENTITY, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that is committed in a repository, and a second one there that is not."""
    for name in ("mine", "installed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "mine")
    git(tmp_path, "commit", "-q", "-m", "begin")
    return tmp_path / "mine"


def test_commit_and_changes(package: Path) -> None:
    state = git_state_of(package)
    assert state is not None
    assert (state.commit, state.modified) == (git(package, "rev-parse", "HEAD"), False)
    (package / "new.py").write_text("")  # git does not know it
    state = git_state_of(package)
    assert state is not None
    assert state.modified is False
    (package / "__init__.py").write_text("changed = 1")
    state = git_state_of(package)
    assert state is not None
    assert state.modified is True


def test_somebody_elses_repository_is_not_ours(package: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert git_state_of(package.parent / "installed") is None
    assert git_state_of(tmp_path_factory.mktemp("bare")) is None
    assert git_state_of(package / "nowhere") is None


def test_without_git_nothing_is_said(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(package))
    assert git_state_of(package) is None


def test_what_a_hook_of_another_repository_set_is_not_read(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(package / "nowhere"))
    assert git_state_of(package) is not None


def test_evos_own() -> None:
    assert evo_version()
    here = Path(__file__).parent
    head = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
    state = git_state()
    assert (None if state is None else f"{state.commit}\n") == (head.stdout or None)
