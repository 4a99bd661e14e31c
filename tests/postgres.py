"""A real PostgreSQL server on loopback, made of a temporary folder and a free port."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm_daemons import free_ports

USER = "postgres"


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL server here: Debian keeps it off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else None


def require_postgres() -> Path:
    """Skip the test where there is no PostgreSQL; fail where services are required."""
    found = binaries()
    if found is None:
        reason = "PostgreSQL is not installed here; run: sudo make services"
        if os.environ.get("EVO_REQUIRE_SERVICES") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


@contextmanager
def running_postgres() -> Iterator[str]:
    """A server with an empty database `evo` for the block; gives ``USER@HOST:PORT/DATABASE``. It is gone afterwards."""
    own = require_postgres()
    folder = Path(tempfile.mkdtemp(prefix="evo-postgres-"))
    (port,) = free_ports(1)
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, USER, USER)
    log = folder / "log"
    listens = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder} -c fsync=off"
    data = folder / "data"
    try:
        _as_owner(own / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        _as_owner(own / "pg_ctl", "-D", data, "-l", log, "-w", "-o", listens, "start")
        try:
            _as_owner(own / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", USER, "evo")
            yield f"{USER}@127.0.0.1:{port}/evo"
        finally:
            _as_owner(own / "pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def asked(address: str, query: str) -> list[str]:
    """The rows that a query gives, a line each."""
    folder = require_postgres()
    command = [str(folder / "psql"), f"postgresql://{address}", "-At", "-c", query]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()


def _as_owner(*command: str | Path) -> None:
    user = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        timeout=60,
        check=False,
        **user,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command}: status {done.returncode}"
