"""Daemons of a test cluster: started with its configuration, waited for, ended by their pid files."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from evo_core.process import start_time


def search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def start_daemon(command: list[str], conf: Path) -> None:
    program = shutil.which(command[0], path=search_path())
    assert program, f"{command[0]} is not installed"
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    env |= {"SLURM_CONF": str(conf), "PATH": search_path()}
    # a daemon keeps its standard streams open: a pipe would never see its end
    with (conf.parent / "log" / "start.log").open("ab") as log:
        subprocess.run(
            [program, *command[1:]],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=30,
            check=True,
            start_new_session=True,
        )


def wait_for(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            if condition():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(0.05)


def end_daemon(pid_file: Path, program: str) -> None:
    """SIGTERM by pid file, again after two seconds (a slurmd without controller may miss the first), then SIGKILL."""
    try:
        pid = int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if name_of(pid) != program:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and name_of(pid) == program:
            time.sleep(0.02)
    if name_of(pid) == program:
        raise RuntimeError(f"{program} (pid {pid}) cannot be ended")


def name_of(pid: int) -> str:
    """Name of the process, or nothing if it has ended (a zombie counts as ended)."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""
    return "" if start_time(pid) is None else name


def free_ports(count: int) -> list[int]:
    """Ports below the range from which outgoing connections are served."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(12000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def ancestors(pid: int) -> list[int]:
    """The process's parent, that one's parent and so on, up to the first process of all."""
    found: list[int] = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found
