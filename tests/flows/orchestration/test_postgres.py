"""PostgreSQL by Prefect's one setting: the server of `evo run` keeps what it shows there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.orchestration.conftest import clean_environment, evo, start
from tests.flows.orchestration.small import Small
from tests.postgres import asked, running_postgres

pytestmark = pytest.mark.ui


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as address:
        yield address


def test_the_server_of_a_run_uses_the_database_that_is_set(postgres: str, tmp_path: Path) -> None:
    small = Small(tmp_path)
    environment = clean_environment(tmp_path) | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres}"
    }
    done = evo("run", str(small.file), "--root", str(small.root), environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = asked(postgres, "select name, state_type from flow_run")
    assert len(rows) == 1 and rows[0].startswith("small-") and rows[0].endswith("|COMPLETED")
    assert asked(postgres, "select count(*) from task_run where state_type = 'COMPLETED'") == ["5"]
    assert not list((small.root / "prefect").glob("*.db*")), "and no file beside it"


@pytest.mark.slow
def test_several_runs_at_once_share_it(postgres: str, tmp_path: Path) -> None:
    environment = clean_environment(tmp_path) | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres}"
    }
    smalls = [Small(tmp_path / str(number)) for number in range(3)]
    runs = [start("evo", "run", str(s.file), "--root", str(s.root), environment=environment) for s in smalls]
    for run in runs:
        out, _ = run.communicate(timeout=240)
        assert run.returncode == 0, out
    for small in smalls:
        assert small.store.refs.names() == ["small"]


@pytest.mark.slow
def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    small = Small(tmp_path)
    environment = clean_environment(tmp_path) | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://evo:s3cr3t-word@127.0.0.1:1/evo"
    }
    done = evo("run", str(small.file), "--root", str(small.root), environment=environment)
    assert done.returncode == 2
    assert "the Prefect server did not start" in done.stderr and "PREFECT_SERVER_DATABASE_CONNECTION_URL" in done.stderr
    assert "s3cr3t-word" not in done.stdout + done.stderr
