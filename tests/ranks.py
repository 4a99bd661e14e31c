"""Run a function on several ranks of one machine, on the CPU.

Ranks are forked from this process, which has imported torch and what it imports late already (a DTensor imports
dynamo, a second of work): a rank is there in milliseconds. They meet through a file, so no port is needed.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.checkpoint

from evo_core.process import keep_inherited, own_garbage


def run_on_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60.0) -> list[Any]:
    """Call `fn(*args)` on every rank of a gloo process group and return what each returned, in rank order.

    `fn` may be a closure; it finds its rank with `torch.distributed.get_rank()`. Results travel as pickles.

    Raises:
        RuntimeError: a rank failed, with the traceback of the first that did; a rank died; or `timeout` seconds
            passed. No rank is left alive.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        sys.stdout.flush()
        sys.stderr.flush()
        processes = [
            context.Process(
                target=_rank,
                args=(fn, args, rank, world_size, Path(folder) / "store", pipes[rank][1], timeout),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        try:
            with own_garbage():
                for process in processes:
                    process.start()
            for _, sender in pipes:
                sender.close()
            return _collect([receiver for receiver, _ in pipes], time.monotonic() + timeout)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


def _collect(receivers: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        pending = [r for i, r in enumerate(receivers) if i not in results]
        ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [i for i in range(len(receivers)) if i not in results]
            raise RuntimeError(f"ranks {missing} were not done in time")
        for connection in ready:
            rank = receivers.index(connection)  # type: ignore[arg-type]
            try:
                ok, value = pickle.loads(receivers[rank].recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a word") from None
            if not ok:
                raise RuntimeError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[i] for i in range(len(receivers))]


def _rank(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    store: Path,
    sender: Connection,
    timeout: float,
) -> None:
    """One rank: from the fork to the answer. Then it waits to be killed: a rank that ended by itself would break
    collectives that others are still in, and would run pytest's exit handlers a second time."""
    keep_inherited()
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(0.9 * timeout, file=sys.__stderr__)  # where it hangs, if it does
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(store), world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        dist.barrier()  # a rank that left at once would break off the connections that slower ones still make
        answer = (True, fn(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    sender.send_bytes(pickle.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    while True:
        time.sleep(timeout)
