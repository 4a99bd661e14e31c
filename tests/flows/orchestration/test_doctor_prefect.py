"""What `evo doctor` says of a Prefect server."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from flows.doctor import prefect
from flows.doctor.examine import examine
from flows.doctor.finding import Asked, Check
from tests.flows.orchestration.conftest import Api

CHECKS = [Check("prefect", prefect.look, 60)]


def test_a_server_that_answers_with_its_version_and_database(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", api.url)
    found = {finding.subject: finding for finding in examine(Asked(), CHECKS)}
    version = metadata.version("prefect")
    assert found["prefect"].message == f"{version}, server {version} at {api.url}"
    assert {found["prefect"].verdict, found["prefect database"].verdict} == {"ok"}
    assert found["deployments"].verdict in ("ok", "warning", "not here")


def test_an_address_of_the_page_and_not_of_the_api_says_which(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", api.page)
    (finding,) = examine(Asked(), CHECKS)
    assert finding.verdict == "problem" and f"set it to {api.url}" in finding.message
