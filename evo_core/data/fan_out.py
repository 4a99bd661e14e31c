"""Tokenizing on many cores: one fan-out over `tokenize_file`, whoever carries it out.

By default a pool of processes, one a core. Any other `concurrent.futures.Executor` does as well, a Dask cluster's
(`dask_executor`) for one; its workers must see the same folders. The bytes written are the same in every case.

Large plain files are cut into ranges of lines, so that one file uses every core too; the parts are put together in
order in a hidden folder beside the output.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evo_core.data.cores import cores
from evo_core.data.documents import can_be_split
from evo_core.data.files import file_size
from evo_core.data.tokenize import TokenizeResult, TokenizeSpec, join, tokenize_file
from evo_core.errors import DataError
from evo_core.process import die_with_parent

PART_BYTES = 8 << 20
"""Least bytes of a range that a file is cut into: some seconds of work."""
PARTS_A_WORKER = 4
"""Enough that all workers end at about the same time."""

Progress = Callable[[float, int], None]
"""Called now and then with (share of the bytes done, tokens so far)."""


class Interrupted(Exception):
    """`stop` was set; nothing of what was not finished is left."""


@dataclass
class _Output:
    """One ``.bin`` to make, and the parts it is made of: one that writes it, or several that are joined."""

    path: Path
    parts: list[TokenizeSpec]
    results: list[TokenizeResult | None] = field(default_factory=list)

    @property
    def folder(self) -> Path | None:
        """Where the parts are written; None where there is one."""
        return self.parts[0].output.parent if len(self.parts) > 1 else None

    def finish(self) -> TokenizeResult:
        """Join the parts."""
        results = [result for result in self.results if result is not None]
        if self.folder is None:
            return results[0]
        made = join(self.parts, results, self.path)
        shutil.rmtree(self.folder, ignore_errors=True)
        return made


def tokenize_files(
    specs: Sequence[TokenizeSpec],
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    on_done: Callable[[int, TokenizeResult], None] | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> list[TokenizeResult]:
    """Tokenize files, the largest first.

    Args:
        specs: one per file, with different outputs.
        workers: processes of the pool; None is one a core. With an executor: how many it has, to cut large files by.
        executor: what runs `tokenize_file` in place of a pool. It is not shut down.
        on_done: called with (number of the spec, result) as soon as its output is there.
        on_progress: see `Progress`.
        stop: set to end early.

    Returns:
        The results in the order of the specs.

    Raises:
        DataError: a file is wrong. Files that were finished before stay.
        Interrupted: `stop` was set.
    """
    count = workers or cores()
    sizes = [_size(spec) for spec in specs]
    outputs = [
        _Output(spec.output, _in_folder(spec.output, _ranges(spec, size, count, sum(sizes))))
        for spec, size in zip(specs, sizes, strict=True)
    ]
    return _run(outputs, count, executor, on_done, on_progress, stop)


def tokenize_together(
    specs: Sequence[TokenizeSpec],
    output: Path,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> TokenizeResult:
    """Tokenize files into one ``.bin``, one behind the other in the order given; their own outputs are ignored.

    Args and errors are those of `tokenize_files`; after an error nothing is there.
    """
    count = workers or cores()
    sizes = [_size(spec) for spec in specs]
    parts = [
        part
        for spec, size in zip(specs, sizes, strict=True)
        for part in _ranges(replace(spec, output=output), size, count, sum(sizes))
    ]
    return _run([_Output(output, _in_folder(output, parts))], count, executor, None, on_progress, stop)[0]


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


def _size(spec: TokenizeSpec) -> int:
    return max(file_size(spec.input), 1)


def _ranges(spec: TokenizeSpec, size: int, workers: int, total: int) -> list[TokenizeSpec]:
    """The spec, or where its file is large enough for several workers, ranges of it."""
    part = max(PART_BYTES, -(-total // (workers * PARTS_A_WORKER)))
    if workers == 1 or size < 2 * part or not can_be_split(spec.input):
        return [spec]
    count = -(-size // part)
    edges = [size * number // count for number in range(count)] + [size]
    return [replace(spec, byte_range=(edges[n], edges[n + 1])) for n in range(count)]


def _in_folder(output: Path, parts: list[TokenizeSpec]) -> list[TokenizeSpec]:
    if len(parts) == 1:
        return parts
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex[:12]}.parts")
    return [replace(part, output=folder / f"{number}.bin") for number, part in enumerate(parts)]


def _run(
    outputs: list[_Output],
    workers: int,
    executor: Executor | None,
    on_done: Callable[[int, TokenizeResult], None] | None,
    on_progress: Progress | None,
    stop: threading.Event | None,
) -> list[TokenizeResult]:
    """Carry out the parts of all outputs, and finish each output when its last part is done."""
    sizes = {(n, m): _part_size(part) for n, output in enumerate(outputs) for m, part in enumerate(output.parts)}
    finished: dict[int, TokenizeResult] = {}
    done = tokens = 0
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_parts, outputs)
        if executor is None and len(sizes) == 1 and stop is None:
            executor = stack.enter_context(_Here())
        if executor is None:
            executor = stack.enter_context(_pool(min(workers, len(sizes)), outputs))
        pending: dict[Future[TokenizeResult], tuple[int, int]] = {}
        for n, m in sorted(sizes, key=lambda place: -sizes[place]):
            pending[executor.submit(tokenize_file, outputs[n].parts[m])] = (n, m)
        for output in outputs:
            output.results = [None] * len(output.parts)
        try:
            while pending:
                ended, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                if stop is not None and stop.is_set():
                    raise Interrupted(f"{len(outputs) - len(finished)} files are left to tokenize")
                for future in ended:
                    n, m = pending.pop(future)
                    outputs[n].results[m] = future.result()
                    done, tokens = done + sizes[n, m], tokens + future.result().tokens
                    if None not in outputs[n].results:
                        finished[n] = outputs[n].finish()
                        if on_done is not None:
                            on_done(n, finished[n])
                if ended and on_progress is not None:
                    on_progress(done / sum(sizes.values()), tokens)
        finally:
            for future in pending:
                future.cancel()
    return [finished[n] for n in range(len(outputs))]


def _part_size(part: TokenizeSpec) -> int:
    return part.byte_range[1] - part.byte_range[0] if part.byte_range else _size(part)


class _Here(Executor):
    """Runs what it is given at once: one piece of work that nobody can stop needs no process of its own."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def _pool(workers: int, outputs: Sequence[_Output]) -> Iterator[Executor]:
    """A pool of processes. After an error its processes are ended at once, and what they were writing is removed."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=die_with_parent)
    try:
        yield pool
    except BaseException:
        processes = dict(pool._processes or {})
        for process in processes.values():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        for output in outputs:
            for number in processes:
                for left in output.path.parent.glob(f".{output.path.name}*.{number}.tmp*"):
                    left.unlink(missing_ok=True)
        raise
    pool.shutdown(wait=True)


def _remove_parts(outputs: Sequence[_Output]) -> None:
    for output in outputs:
        if output.folder is not None:
            shutil.rmtree(output.folder, ignore_errors=True)
