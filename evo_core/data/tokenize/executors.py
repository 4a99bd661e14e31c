"""What carries out work on data: a pool of processes on this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

from evo_core.cores import cores
from evo_core.errors import DataError
from evo_core.process import die_with_parent


class WorkDone:
    """How much the processes of a pool have done so far, added up while they work.

    It is handed to the processes when they start; each finds it in `WorkDone.of_this_process`.
    """

    of_this_process: WorkDone | None = None

    def __init__(self) -> None:
        self._counts = multiprocessing.get_context("spawn").Array("d", 2)

    def add(self, size: float, tokens: int) -> None:
        """Count bytes of input and tokens made of them."""
        with self._counts.get_lock():
            self._counts[0] += size
            self._counts[1] += tokens

    def read(self) -> tuple[float, int]:
        """Bytes and tokens in all."""
        with self._counts.get_lock():
            return self._counts[0], int(self._counts[1])


@contextlib.contextmanager
def process_pool(workers: int, work_done: WorkDone, on_killed: Callable[[], None]) -> Iterator[Executor]:
    """Processes that die with this one.

    Args:
        on_killed: when the block ends by an error, the processes are killed; called when they are gone.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(work_done,))
    try:
        yield pool
    except BaseException:
        processes = dict(pool._processes or {})
        for process in processes.values():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        on_killed()
        raise
    pool.shutdown(wait=True)


def _begin(work_done: WorkDone) -> None:
    die_with_parent()
    WorkDone.of_this_process = work_done


def one_thread() -> None:
    """Have tokenizers use one thread in a process that is one of several workers: the others have the other cores."""
    if multiprocessing.parent_process() is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


@contextlib.contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster as an executor, for as long as the block runs.

    Args:
        address: of its scheduler, ``tcp://host:8786``; or ``local`` for a cluster on this machine, made for the block.

    Raises:
        DataError: the package ``distributed`` is not installed, or nobody answers.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise DataError("Dask needs the package distributed", key="dask", hint="pip install distributed") from None
    with contextlib.ExitStack() as stack:
        try:
            where = address
            if address == "local":
                where = stack.enter_context(
                    LocalCluster(n_workers=cores(), threads_per_worker=1, dashboard_address=None)
                )
            client = stack.enter_context(Client(where, timeout="20s", set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise DataError(
                f"no Dask scheduler answers at {address} ({error})", key="dask", hint="like tcp://host:8786, or local"
            ) from None
        yield client.get_executor(pure=False, retries=0)
