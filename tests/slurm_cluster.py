"""A real Slurm cluster on one host, made of nothing but a temporary folder and free ports.

Several `slurmd -N nodeK` run beside one `slurmctld` and one `munged`, all on loopback; clients find them by SLURM_CONF.
No systemd, no cgroups, no root needed. A session fixture shares one cluster between all tests that ask for `slurm`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from evo_core.process import start_time
from tests.slurm_accounting import Accounting, missing_accounting, slurm_conf_lines
from tests.slurm_daemons import ancestors, end_daemon, free_ports, name_of, search_path, start_daemon, wait_for

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel")
FOLDER_PREFIX = "evo-slurm-"
NO_ACCOUNTING = """\
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectTypeParameters=CR_Core"""

CONF = """\
ClusterName=testcluster
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# cred_expire is how long a requeued job waits; 5 is the least that is accepted
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
{accounting}
GresTypes=gpu
SelectType=select/cons_tres
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,defer_batch=0
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout={slurmd_timeout}
SlurmctldTimeout=10
MessageTimeout=5
KillWait=5
MinJobAge={min_job_age}
JobRequeue=1
# less than a test asks for
MaxArraySize=5
PropagateResourceLimits=NONE
NodeName=DEFAULT CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} RealMemory=4000 State=UNKNOWN
NodeName=DEFAULT Gres=gpu:4
{node_lines}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
# jobs here push those of the default partition back into the queue
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class SlurmCluster:
    """A running cluster. `conf` is what SLURM_CONF has to say for clients to find it."""

    folder: Path
    nodes: tuple[str, ...]

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def accounting(self) -> Accounting:
        """Its slurmdbd, where it was made with one."""
        return Accounting(self.folder)

    def client(self, *command: str, timeout: float = 30) -> str:
        """Run a Slurm client against this cluster and return what it prints."""
        env = {**os.environ, "SLURM_CONF": str(self.conf), "LC_ALL": "C"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """Job id to state of all jobs the controller remembers."""
        rows = self.client("squeue", "-h", "-t", "all", "-o", "%i|%T").split()
        return dict(row.split("|", 1) for row in rows)

    def start_controller(self) -> None:
        """Start slurmctld; it takes up the jobs it knew when it was stopped."""
        start_daemon(["slurmctld"], self.conf)
        wait_for(lambda: "UP" in self.client("scontrol", "ping"), 20, "slurmctld does not answer")

    def stop_controller(self) -> None:
        """Stop slurmctld; jobs go on running, clients get no answer."""
        end_daemon(self.folder / "run" / "slurmctld.pid", "slurmctld")

    def start(self) -> None:
        start_daemon(
            [
                "munged",
                f"--key-file={self.folder}/munge.key",
                f"--socket={self.folder}/run/munge.socket",
                f"--pid-file={self.folder}/run/munged.pid",
                f"--log-file={self.folder}/log/munged.log",
                f"--seed-file={self.folder}/munge.seed",
            ],
            self.conf,
        )
        if (self.folder / "slurmdbd.conf").exists():
            self.accounting.start(self.client)
            # where jobs need an account, its owner may have this one
            self.client("sacctmgr", "-i", "add", "account", "ours")
            self.client("sacctmgr", "-i", "add", "user", getpass.getuser(), "account=ours")
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        wait_for(self._idle, 30, "not every node became idle")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        start_daemon(["slurmd", "-c", "-N", node], self.conf)

    def kill_node(self, node: str) -> None:
        """End a node as a power cut does: its slurmd and all that runs on it are gone in one moment."""
        slurmd = int((self.folder / "run" / f"slurmd.{node}.pid").read_text())
        os.kill(slurmd, signal.SIGKILL)
        marks = {f"SLURM_CONF={self.conf}".encode(), f"SLURMD_NODENAME={node}".encode()}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marks <= set((process / "environ").read_bytes().split(b"\0")):
                    stepd = [pid for pid in ancestors(int(process.name)) if name_of(pid) == "slurmstepd"]
                    for pid in (*stepd, int(process.name)):
                        os.kill(pid, signal.SIGKILL)

    def _idle(self) -> bool:
        return self.client("sinfo", "-h", "-N", "-p", "debug", "-o", "%T").split() == ["idle"] * len(self.nodes)

    def stop(self) -> None:
        """End every job and every daemon, and check that they are gone."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.client("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
            self.client("scancel", f"--user={getpass.getuser()}")
            wait_for(lambda: not self.client("squeue", "-h").strip(), 15, "jobs remain")
        for node in self.nodes:
            end_daemon(self.folder / "run" / f"slurmd.{node}.pid", "slurmd")
        end_daemon(self.folder / "run" / "slurmctld.pid", "slurmctld")
        self.accounting.stop()
        end_daemon(self.folder / "run" / "munged.pid", "munged")
        _kill_steps_of(self.conf)


@contextlib.contextmanager
def slurm_cluster(
    nodes: int = 2,
    cpus: int = 4,
    min_job_age: int = 600,
    *,
    slurmd_timeout: int = 10,
    accounting: bool = False,
    enforce: bool = False,
) -> Iterator[SlurmCluster]:
    """Start a cluster of `nodes` nodes that each claim `cpus` cores; everything is gone afterwards.

    Args:
        min_job_age: seconds for which the controller remembers jobs that have ended.
        slurmd_timeout: seconds after which a node that does not answer is down.
        accounting: whether it has a slurmdbd.
        enforce: whether that lets nobody submit without an account.
    """
    _sweep_orphans()
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    folder.chmod(0o755)
    for part in ("state", "spool", "log", "run"):
        (folder / part).mkdir(mode=0o755)
    (folder / "owner").write_text(f"{os.getpid()} {start_time(os.getpid())}")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    ports = free_ports(nodes + 2)
    names = tuple(f"node{i + 1}" for i in range(nodes))
    cluster = SlurmCluster(folder, names)
    cluster.conf.write_text(
        CONF.format(
            host=host,
            folder=folder,
            user=getpass.getuser(),
            cpus=cpus,
            min_job_age=min_job_age,
            slurmd_timeout=slurmd_timeout,
            accounting=slurm_conf_lines(folder, ports[-1], enforce) if accounting else NO_ACCOUNTING,
            controller_port=ports[0],
            node_lines="\n".join(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
                for name, port in zip(names, ports[1:-1], strict=True)
            ),
        )
    )
    # Slurm counts no GPU without a device file and looks into none: jobs ask for GPUs as on a real node.
    devices = ("null", "zero", "full", "random")
    (folder / "gres.conf").write_text("".join(f"Name=gpu File=/dev/{name}\n" for name in devices))
    try:
        if accounting:
            cluster.accounting.prepare(ports[-1])
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def missing_programs() -> list[str]:
    """Programs of a Slurm installation that are not on this machine."""
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A real two-node cluster for the whole session, with SLURM_CONF set so that every client finds it."""
    require(missing_programs())
    with slurm_cluster() as cluster, found_by_clients(cluster):
        yield cluster


def require(absent: list[str]) -> None:
    """Skip the test by name, or fail where services are required, unless every program is here."""
    if absent:
        reason = f"Slurm is not installed here (no {', '.join(absent)}); sudo make services"
        if os.environ.get("EVO_REQUIRE_SERVICES") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def require_accounting() -> None:
    """The same for a cluster with accounting."""
    require([*missing_programs(), *missing_accounting()])


@contextlib.contextmanager
def found_by_clients(cluster: SlurmCluster) -> Iterator[None]:
    """SLURM_CONF names the cluster meanwhile."""
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(cluster.conf)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _kill_steps_of(conf: Path) -> None:
    """What still runs under a slurmstepd of this cluster (a job may outlive its slurmd)."""
    mark = f"SLURM_CONF={conf}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        with contextlib.suppress(OSError):
            if pid != os.getpid() and name_of(pid) == "slurmstepd" and mark in (process / "environ").read_bytes():
                os.kill(pid, signal.SIGKILL)


def _sweep_orphans() -> None:
    """End clusters whose test session was killed before it could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, started = (folder / "owner").read_text().split()
            if str(start_time(int(pid))) != started:
                names = tuple(f.name.split(".")[1] for f in (folder / "run").glob("slurmd.*.pid"))
                SlurmCluster(folder, names).stop()
                shutil.rmtree(folder, ignore_errors=True)
