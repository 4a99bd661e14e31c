"""Tokenizing on many cores: one fan-out over `tokenize_into`, whoever carries it out.

By default a pool of processes, one a core. Any other `concurrent.futures.Executor` does as well, a Dask cluster's
(`dask_executor`) for one; its workers must see the same folders. The bytes written are the same in every case.

`parts` says how the work is cut: one large file uses every core too.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from evo_core.data.shards.format import write_error
from evo_core.data.tokenize.executors import WorkDone, dask_executor, one_thread, process_pool
from evo_core.data.tokenize.parts import Cutting, Output, Part, size_of
from evo_core.data.tokenize.tokenize_file import TokenizeResult, TokenizeSpec, tokenize_into
from evo_core.errors import DataError
from evo_core.storage.atomic import clear_drafts

__all__ = ["Interrupted", "Progress", "dask_executor", "tokenize_files", "tokenize_together"]

HERE_BYTES = 1 << 20
"""Less than this is done sooner in this process than others have started."""

_TICK = 0.2  # seconds between two looks at whether to stop
_GRACE = 10.0  # seconds for workers of an executor, which nobody may kill, to see that their work is not wanted

Progress = Callable[[float, int], None]
"""Called now and then with (share of the bytes done, tokens so far)."""


class WorkerKilled(DataError):
    """A process of the pool was ended from outside."""


class Interrupted(Exception):
    """`stop` was set; nothing of what was not finished is left."""


class _GivenUp(Exception):
    """Nobody waits for this work any more."""


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
        executor: what carries out the work in part_id of a pool. It is not shut down.
        on_done: called with (number of the spec, result) as soon as its output is there.
        on_progress: see `Progress`.
        stop: set to end early.

    Returns:
        The results in the order of the specs.

    Raises:
        DataError: a file is wrong, or a worker died. Files that were finished before stay.
        Interrupted: `stop` was set.
    """
    if not specs:
        return []
    sizes = [size_of(spec) for spec in specs]
    plan = Cutting(sizes, workers, executor, specs[0].output.parent)
    outputs = [plan.output(spec.output, [spec], [size]) for spec, size in zip(specs, sizes, strict=True)]
    return _run(_Work(outputs, plan, on_done, on_progress, stop), executor)


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
    sizes = [size_of(spec) for spec in specs]
    plan = Cutting(sizes, workers, executor, output.parent)
    work = _Work([plan.output(output, specs, sizes)], plan, None, on_progress, stop)
    return _run(work, executor)[0]


_PartId = tuple[int, int]
"""(number of the output, number of the part in it)"""
_Results = Generator[tuple[_PartId, TokenizeResult], None, None]


class _Work:
    """Outputs on their way.

    Args:
        outputs: what is made.
        plan: how they are cut.
        on_done, on_progress, stop: as for `tokenize_files`.

    Attributes:
        finished: results of the outputs that are there, by number.
        shared: counts of the processes of a pool, where one works.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        plan: Cutting,
        on_done: Callable[[int, TokenizeResult], None] | None,
        on_progress: Progress | None,
        stop: threading.Event | None,
    ) -> None:
        self.outputs, self.plan = outputs, plan
        self.finished: dict[int, TokenizeResult] = {}
        self.shared: WorkDone | None = None
        self._on_done, self._on_progress, self._stop = on_done, on_progress, stop
        self._bytes, self._tokens = 0.0, 0

    def results(self, executor: Executor | None, stack: contextlib.ExitStack) -> _Results:
        """Start the work; a pool of processes, if it takes one, ends with the stack."""
        parts = [((n, m), part) for n, output in enumerate(self.outputs) for m, part in enumerate(output.parts)]
        parts.sort(key=lambda entry: -entry[1].size)  # the largest first, or one worker would be at it alone in the end
        if executor is not None:
            return _spread(parts, executor, self.tick, grace=_GRACE)
        # A single part runs in a process of its own where it may have to be stopped: here, only its end can be awaited.
        if self.plan.total < HERE_BYTES or (len(parts) == 1 and self._stop is None):
            return _here(parts, self.tick, self._on_progress)
        self.shared = WorkDone()
        workers = min(self.plan.workers, len(parts))
        pool = stack.enter_context(process_pool(workers, self.shared, self.clear_killed))
        return _spread(parts, pool, self.tick, grace=0)  # the pool's processes are killed: nobody to wait for

    def take(self, part_id: _PartId, result: TokenizeResult) -> None:
        """The result of a part; after the last one of an output, that output is finished."""
        number, part = part_id
        output = self.outputs[number]
        whole = output.add(part, result)
        self._bytes, self._tokens = self._bytes + output.parts[part].size, self._tokens + result.tokens
        if whole is not None:
            self.finished[number] = whole
            if self._on_done is not None:
                self._on_done(number, whole)

    def tick(self) -> None:
        """Between two looks at the workers: stop if that is asked for, and say how far they are."""
        if self._stop is not None and self._stop.is_set():
            raise Interrupted(f"{len(self.outputs) - len(self.finished)} files are left to tokenize")
        if self._on_progress is not None:
            size, count = (self._bytes, self._tokens) if self.shared is None else self.shared.read()
            self._on_progress(min(size / self.plan.total, 1.0), count)

    def end(self) -> None:
        """Say that all is done."""
        if self._on_progress is not None:
            self._on_progress(1.0, self._tokens)

    def clear_killed(self) -> None:
        """Remove what processes that were killed have left: they had no time to do it themselves."""
        for folder in {output.path.parent for output in self.outputs}:
            clear_drafts(folder)

    def clean(self) -> None:
        """Remove the parts of outputs that are not finished."""
        for number, output in enumerate(self.outputs):
            if number not in self.finished:
                output.clean()


def _run(work: _Work, executor: Executor | None) -> list[TokenizeResult]:
    """Carry out the parts of all outputs, and finish each output when its last part is done."""
    lease = work.plan.lease
    with contextlib.ExitStack() as stack:
        stack.callback(work.clean)
        try:
            lease.parent.mkdir(parents=True, exist_ok=True)
            lease.touch()
        except OSError as error:
            raise write_error(work.outputs[0].path, error) from error
        stack.callback(lease.unlink, missing_ok=True)
        results = work.results(executor, stack)
        # Closed before the pool is left: an error in `take` must withdraw what was handed out, as one of a worker does.
        for part_id, result in stack.enter_context(contextlib.closing(results)):
            work.take(part_id, result)
        work.end()
    return [work.finished[n] for n in range(len(work.outputs))]


def _here(parts: Sequence[tuple[_PartId, Part]], tick: Callable[[], None], on_progress: Progress | None) -> _Results:
    """Do the parts in this process."""
    total, before, tokens_before = sum(part.size for _, part in parts), 0.0, 0

    def tell(part: Part, number: int, share: float, tokens: int) -> None:
        if on_progress is not None:
            on_progress((before + _read(part, number, share)) / total, tokens_before + tokens)

    for part_id, part in parts:
        tick()
        result = tokenize_into(part.specs, part.output, durable=not part.hidden, on_batch=partial(tell, part))
        before, tokens_before = before + part.size, tokens_before + result.tokens
        yield part_id, result


def _spread(
    parts: Sequence[tuple[_PartId, Part]], executor: Executor, tick: Callable[[], None], *, grace: float
) -> _Results:
    """Do the parts in the workers of an executor.

    When that ends early, work that has begun goes on to its next look at the lease, after a batch; it is waited for.

    Args:
        grace: for so many seconds at most.
    """
    pending: dict[Future[TokenizeResult], tuple[_PartId, Part]] = {}
    try:
        for part_id, part in parts:
            pending[executor.submit(_work, part)] = (part_id, part)
        while pending:
            ended, _ = wait(pending, timeout=_TICK, return_when=FIRST_COMPLETED)
            tick()
            for future in ended:
                part_id, _ = pending.pop(future)
                yield part_id, future.result()
    except BrokenProcessPool:
        raise WorkerKilled(
            "a process that tokenizes was ended from outside; the system does that when memory runs out",
            hint="use fewer workers",
        ) from None
    except BaseException:
        # What has begun cannot be cancelled through a future: without the lease it gives up by itself.
        for _, part in pending.values():
            part.lease.unlink(missing_ok=True)
        wait([future for future in pending if not future.cancel()], timeout=grace)
        raise


def _work(part: Part) -> TokenizeResult:
    """Do a part, in a worker."""
    one_thread()
    work_done = WorkDone.of_this_process
    read, told = 0.0, 0

    def tell(size: float, tokens: int) -> None:
        nonlocal read, told
        if work_done is not None:
            work_done.add(size - read, tokens - told)
            read, told = size, tokens

    def on_batch(number: int, share: float, tokens: int) -> None:
        if not part.lease.exists():
            raise _GivenUp
        tell(_read(part, number, share), tokens)

    if not part.lease.exists():
        raise _GivenUp
    # A hidden part is read again at once and then removed: no need to see it onto the disk.
    result = tokenize_into(part.specs, part.output, durable=not part.hidden, on_batch=on_batch)
    tell(part.size, result.tokens)
    return result


def _read(part: Part, number: int, share: float) -> float:
    """Bytes of a part that are read: files are taken as equally large."""
    return part.size * (number + share) / len(part.specs)
