"""The accounting of a test cluster: slurmdbd and its database, in the cluster's own folder.

MariaDB listens on a socket file alone, slurmdbd on loopback. Nothing is installed or configured outside the folder, and
the same works for root and for anybody else.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.slurm_daemons import end_daemon, search_path, start_daemon, wait_for

PROGRAMS = ("slurmdbd", "mariadbd", "sacctmgr", "sacct")

SLURM_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
# a munge of one's own: without its socket here slurmctld cannot show who it is
AccountingStoragePass={folder}/run/munge.socket
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
# without control groups: who uses more than was asked for is killed at the next look
JobAcctGatherParams=OverMemoryKill
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
{enforce}"""

_CONF = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_acct
"""

_SYSTEM_TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")
_SMALL = ("--no-defaults", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M", "--skip-networking")


def missing_accounting() -> list[str]:
    """Programs and files of an accounting that are not on this machine."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    return absent if _SYSTEM_TABLES.exists() else [*absent, str(_SYSTEM_TABLES)]


def slurm_conf_lines(folder: Path, port: int, enforce: bool) -> str:
    """What slurm.conf says of the accounting.

    Args:
        enforce: whether jobs need an account and keep to its limits.
    """
    said = "AccountingStorageEnforce=associations,limits,qos" if enforce else ""
    return SLURM_CONF.format(port=port, folder=folder, enforce=said)


class Accounting:
    """The two daemons of one cluster, which need not run both, or at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, port: int) -> None:
        """Make an empty database and the daemon's configuration."""
        data = self.folder / "db"
        data.mkdir(mode=0o700)
        script = f"create database mysql;\nuse mysql;\n{_SYSTEM_TABLES.read_text()}"
        with (self.folder / "log" / "database.log").open("ab") as log:
            subprocess.run(
                [_program("mariadbd"), *_SMALL, f"--datadir={data}", f"--user={getpass.getuser()}", "--bootstrap"],
                input=script.encode(),
                stdout=log,
                stderr=log,
                timeout=60,
                check=True,
            )
        conf = self.folder / "slurmdbd.conf"
        host = socket.gethostname().split(".")[0]
        conf.write_text(_CONF.format(folder=self.folder, host=host, port=port, user=getpass.getuser()))
        conf.chmod(0o600)

    def start(self, ask: Callable[..., str]) -> None:
        """Start the database and slurmdbd, and make the cluster known to it.

        Args:
            ask: runs one of Slurm's clients.
        """
        self._start_database()
        self.start_slurmdbd()
        wait_for(lambda: _knows_cluster(ask), 30, "slurmdbd does not answer")

    def start_slurmdbd(self) -> None:
        """Start slurmdbd again; slurmctld hands it what happened meanwhile."""
        os.environ["MYSQL_UNIX_PORT"] = str(self._socket)
        try:
            start_daemon(["slurmdbd"], self.folder / "slurm.conf")
        finally:
            del os.environ["MYSQL_UNIX_PORT"]

    def stop_slurmdbd(self) -> None:
        """End slurmdbd alone: `sacct` gets no answer, jobs go on."""
        end_daemon(self.folder / "run" / "slurmdbd.pid", "slurmdbd")

    def stop(self) -> None:
        """End both."""
        self.stop_slurmdbd()
        end_daemon(self.folder / "run" / "mysqld.pid", "mariadbd")

    @property
    def _socket(self) -> Path:
        return self.folder / "run" / "mysqld.sock"

    def _start_database(self) -> None:
        with (self.folder / "log" / "database.log").open("ab") as log:
            subprocess.run(
                [
                    *("setsid", "--fork", _program("mariadbd"), *_SMALL, "--skip-grant-tables"),
                    *("--innodb-flush-log-at-trx-commit=0", f"--datadir={self.folder / 'db'}"),
                    *(f"--user={getpass.getuser()}", f"--socket={self._socket}"),
                    f"--pid-file={self.folder / 'run' / 'mysqld.pid'}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )
        wait_for(self._answers, 30, "the database does not answer")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self._socket))
            return True
        return False


def _knows_cluster(ask: Callable[..., str]) -> bool:
    if "testcluster" not in ask("sacctmgr", "-n", "-P", "show", "cluster"):
        ask("sacctmgr", "-i", "add", "cluster", "testcluster")
    return True


def _program(name: str) -> str:
    found = shutil.which(name, path=search_path())
    assert found, f"{name} is not installed"
    return found
