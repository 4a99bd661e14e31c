"""Whose a checkpoint is: sessions that follow each other whatever clocks say, and a `run.json` that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint.run import FILE, Run, check_not_overtaken
from evo_core.errors import CheckpointError


def test_a_session_is_later_than_one_whose_clock_was_ahead(tmp_path: Path) -> None:
    run = Run.new()
    ahead = Run(run.id, session="9000000000.000000 elsewhere process 7")
    now = run.begun_here([], "job", [None, ahead, Run.new()])
    check_not_overtaken(now, tmp_path, [ahead])
    with pytest.raises(CheckpointError, match="has gone on with this run"):
        check_not_overtaken(ahead, tmp_path, [now])
    of_another = Run.new().begun_here([], "job", [ahead])
    assert of_another.session < ahead.session


UNREADABLE = {
    "huge": {"saved": 10**400},
    "no number": {"saved": float("nan")},
    "session": {"session": "yesterday"},
    "launch": {"launch": 3},
}


@pytest.mark.parametrize("changed", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_nobody_s(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert Run.new().begun_here([], "job").write(tmp_path)
    assert Run.read(tmp_path) is not None
    raw = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(raw | changed))
    assert Run.read(tmp_path) is None
