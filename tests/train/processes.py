"""The training command in processes of its own, forked from this one, which has imported torch already."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import tests.ranks  # noqa: F401  # imports early what torch imports late
from evo_core.process import keep_inherited, own_garbage

Hook = Callable[[int], None]


class Command:
    """Ranks of ``python -m evo_core.train`` with the environment that torchrun gives them.

    Args:
        arguments: of the command.
        log: where ranks print.
        ranks: how many.
        each_step: called with the step before a step draws its batch.
        environment: variables beside torchrun's.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        ranks: int = 1,
        each_step: Hook | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        port = free_port()
        self.pids: list[int] = []
        self._statuses: dict[int, int] = {}
        for rank in range(ranks):
            variables = dict(environment or {}, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
            if ranks > 1:
                variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            with own_garbage():
                pid = os.fork()
                if pid == 0:
                    _run(arguments, log, variables, each_step)
            self.pids.append(pid)

    def ended(self) -> bool:
        """Whether every rank has ended."""
        for pid in self.pids:
            if pid not in self._statuses and (done := os.waitpid(pid, os.WNOHANG))[0]:
                self._statuses[pid] = os.waitstatus_to_exitcode(done[1])
        return len(self._statuses) == len(self.pids)

    def wait(self, timeout: float = 60.0) -> list[int]:
        """Exit statuses in rank order; those killed by a signal are negative. Kills what is left at the timeout."""
        deadline = time.monotonic() + timeout
        while not self.ended():
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(self.log.read_text())
            time.sleep(0.005)
        return [self._statuses[pid] for pid in self.pids]

    def kill(self, pids: Sequence[int] | None = None, number: int = signal.SIGKILL) -> None:
        """Send ranks a signal, by default all that are left."""
        for pid in self.pids if pids is None else pids:
            if pid not in self._statuses:
                os.kill(pid, number)


_held: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody else is given while this process lives.

    It stays bound and is never listened on: the kernel then gives it to no other program, and a store of torch's, which
    sets SO_REUSEADDR, may serve it.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    return int(holder.getsockname()[1])


def _run(arguments: Sequence[str], log: Path, variables: dict[str, str], each_step: Hook | None) -> None:
    """The forked process: everything it prints goes to the log, and it never comes back."""
    status = 70
    keep_inherited()
    try:
        os.environ.update(variables)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        torch.set_num_threads(1)
        from evo_core.train.command import main
        from tests.train.jobs import before_each_step

        if each_step is not None:
            before_each_step(each_step)
        main(arguments)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
