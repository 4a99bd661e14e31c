"""Ranks of this machine that take one task after another: forked processes in one gloo group on the CPU.

Forked from a process that has imported torch, a rank is there in milliseconds. Ranks meet through a file, so no port is
needed. A task that fails, hangs or loses a rank ends all of them, since what the others wait for will not come; the
next task gets new ones.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

import torch
import torch.distributed as dist

from evo_core.process import die_with_parent, keep_inherited, own_garbage

T = TypeVar("T")

_START = 120.0
"""Seconds for the ranks to find each other."""

_LATER = 2.0
"""Seconds that the ranks have beyond a task's own, to write down where they hang."""

_DYING = 1.0
"""Seconds in which a dead rank is heard of behind the ranks that failed because of it."""


class RankError(Exception):
    """A rank failed, ended or hangs; the text says which, and where."""


class Pool:
    """So many ranks, started with the first task; a context manager, whose end kills them.

    Args:
        size: how many.
        timeout: seconds that a task may take.
    """

    def __init__(self, size: int, *, timeout: float) -> None:
        self.size, self._timeout = size, timeout
        self._processes: list[ForkProcess] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, task: Callable[..., T], *args: Any) -> list[T]:
        """What `task(*args)` returns on each rank, in their order.

        Args:
            task: a function of a module; task, arguments and results travel as pickles.

        Raises:
            RankError: a rank failed, with its traceback; it died; or the time is over, with where the ranks hang.
        """
        message = pickle.dumps((task, args))
        try:
            if not self._processes:
                self._start()
                self._collect(_START)
            for pipe in self._pipes:
                pipe.send_bytes(message)
            return self._collect(self._timeout)
        except BaseException as error:
            lost = [rank for rank, process in enumerate(self._processes) if not process.is_alive()]
            self.close()
            if isinstance(error, BrokenPipeError):
                raise RankError(f"ranks {lost} ended between two tasks") from error
            raise

    def close(self) -> None:
        """End the ranks; where there are none, do nothing."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._folder = tempfile.TemporaryDirectory(prefix="evo-parity-")
        sys.stdout.flush()
        sys.stderr.flush()
        with own_garbage():
            for rank in range(self.size):
                here, there = context.Pipe()
                args = (there, rank, self.size, Path(self._folder.name), self._timeout)
                process = context.Process(target=_serve, args=args, daemon=True)
                process.start()
                there.close()
                self._processes.append(process)
                self._pipes.append(here)

    def _collect(self, seconds: float) -> list[Any]:
        """The answer of each rank; the first failure ends the waiting."""
        deadline = time.monotonic() + seconds + _LATER
        results: dict[int, Any] = {}
        while len(results) < self.size:
            waiting = {self._pipes[rank]: rank for rank in range(self.size) if rank not in results}
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RankError(self._where_they_hang(sorted(waiting.values()), seconds))
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting[pipe]
                try:
                    done, value = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    raise RankError(self._how_it_ended(rank)) from None
                if not done:
                    dead = self._died_meanwhile(but=rank)
                    raise RankError(f"rank {rank} failed:\n{value}" if dead is None else self._how_it_ended(dead))
                results[rank] = value
        return [results[rank] for rank in range(self.size)]

    def _how_it_ended(self, rank: int) -> str:
        self._processes[rank].join()
        code = self._processes[rank].exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return f"rank {rank} {how}"

    def _died_meanwhile(self, but: int) -> int | None:
        """A rank that is dead, if any: where one dies the others fail, and may be heard of before it."""
        others = {self._processes[rank].sentinel: rank for rank in range(self.size) if rank != but}
        dead = wait(list(others), timeout=_DYING)
        return min((others[sentinel] for sentinel in dead if isinstance(sentinel, int)), default=None)

    def _where_they_hang(self, missing: list[int], seconds: float) -> str:
        assert self._folder is not None
        lines = [f"ranks {missing} were not done within {seconds:g} s:"]
        for rank in missing:
            stack = _stack_file(Path(self._folder.name), rank)
            lines += [f"rank {rank}", stack.read_text() if stack.exists() else "  left no word"]
        return "\n".join(lines)


def _stack_file(folder: Path, rank: int) -> Path:
    return folder / f"stack-{rank}"


def _serve(pipe: Connection, rank: int, size: int, folder: Path, timeout: float) -> None:
    """The life of a rank: from the fork to the end of the process that wanted it."""
    keep_inherited()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a terminal's whole group; the first process ends all
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", TORCHINDUCTOR_COMPILE_THREADS="1")
    torch.set_num_threads(1)
    if (inductor := sys.modules.get("torch._inductor.config")) is not None:
        # Helpers of a compiler that this process has used before do not come along with a fork.
        inductor.compile_threads = 1  # type: ignore[attr-defined]
    with _stack_file(folder, rank).open("w") as stack:
        _answer(pipe, stack, _START, lambda: _join(folder / "store", rank, size, timeout))
        while True:
            task, args = pickle.loads(pipe.recv_bytes())
            _answer(pipe, stack, timeout, partial(task, *args))


def _join(store: Path, rank: int, size: int, timeout: float) -> None:
    """Make the default group. Its patience is longer than that for a task, so that all ranks say where they hang."""
    patience = timedelta(seconds=max(timeout, _START) + 60)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size, timeout=patience
    )
    dist.barrier()


def _answer(pipe: Connection, stack: TextIO, seconds: float, task: Callable[[], Any]) -> None:
    """Carry out a task and send what it returns, or the traceback of what it raises; note where it is when its time is
    over."""
    faulthandler.dump_traceback_later(seconds, file=stack)
    try:
        answer = (True, task())
    except BaseException:
        answer = (False, traceback.format_exc())
    faulthandler.cancel_dump_traceback_later()
    pipe.send_bytes(pickle.dumps(answer))
