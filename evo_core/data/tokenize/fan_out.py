"""Tokenizing on many cores: one fan-out over `tokenize_into`, whoever carries it out.

By default a pool of processes, one a core. Any other `concurrent.futures.Executor` does as well, a Dask cluster's
(`dask_executor`) for one; its workers must see the same folders. The bytes written are the same in every case.

Large plain files are cut into ranges of lines, so that one file uses every core too, and neighbours that are small and
go into one output are done together; the parts are put behind one another in a hidden folder beside the output.
"""

from __future__ import annotations

import contextlib
import math
import threading
import uuid
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from evo_core.cores import cores
from evo_core.data.raw.documents import can_be_split
from evo_core.data.shards.format import write_error
from evo_core.data.tokenize.executors import WorkDone, dask_executor, one_thread, process_pool
from evo_core.data.tokenize.tokenize_file import TokenizeResult, TokenizeSpec, join, tokenize_into
from evo_core.errors import DataError
from evo_core.storage.atomic import clear_drafts, draft_name
from evo_core.storage.files import delete, file_size

__all__ = ["Interrupted", "Progress", "dask_executor", "tokenize_files", "tokenize_together"]

PART_BYTES = 8 << 20
"""Least bytes of a range that a file is cut into: some seconds of work."""
MOST_PART_BYTES = 64 << 20
PARTS_A_WORKER = 4
"""Enough that all workers end at about the same time."""
HERE_BYTES = 1 << 20
"""Less than this is done sooner in this process than others have started."""

_TICK = 0.2
_GRACE = 10.0

Progress = Callable[[float, int], None]
"""Called now and then with (share of the bytes done, tokens so far)."""


class Interrupted(Exception):
    """`stop` was set; nothing of what was not finished is left."""


class _GivenUp(Exception):
    """Nobody waits for this work any more."""


@dataclass(frozen=True)
class _Part:
    """What one worker does at a time: raw files, or a range of one, to a token file.

    Attributes:
        specs: what is tokenized, in order.
        output: the token file; that of the caller where it is the only part of it, else a hidden one.
        size: bytes of input.
        hidden: whether it is a hidden one.
        lease: while this file is there, somebody waits for the work.
    """

    specs: tuple[TokenizeSpec, ...]
    output: Path
    size: float
    hidden: bool
    lease: Path


@dataclass
class _Output:
    """One ``.bin`` to make of its parts."""

    path: Path
    parts: list[_Part]
    results: dict[int, TokenizeResult] = field(default_factory=dict)

    def add(self, number: int, result: TokenizeResult) -> TokenizeResult | None:
        """Take the result of a part; after the last one, the result of the whole."""
        self.results[number] = result
        if len(self.results) < len(self.parts):
            return None
        if not self.parts[0].hidden:
            return result
        specs = self.parts[0].specs
        made = join(
            [part.output for part in self.parts], [r for _, r in sorted(self.results.items())], self.path, specs
        )
        self.clean()
        return made

    def clean(self) -> None:
        """Remove the hidden parts."""
        if self.parts[0].hidden:
            delete(self.parts[0].output.parent)


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
    sizes = [_size(spec) for spec in specs]
    plan = _Plan(sizes, workers, executor, specs[0].output.parent)
    outputs = [plan.output(spec.output, [spec], [size]) for spec, size in zip(specs, sizes, strict=True)]
    return _run(outputs, plan, executor, on_done, on_progress, stop)


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
    sizes = [_size(spec) for spec in specs]
    plan = _Plan(sizes, workers, executor, output.parent)
    return _run([plan.output(output, specs, sizes)], plan, executor, None, on_progress, stop)[0]


def _size(spec: TokenizeSpec) -> int:
    if spec.byte_range is not None:
        return spec.byte_range[1] - spec.byte_range[0]
    return max(file_size(spec.input), 1)


class _Plan:
    """How work is cut into parts.

    Attributes:
        workers: that share it.
        lease: see `_Part`.
    """

    def __init__(self, sizes: Sequence[int], workers: int | None, executor: Executor | None, folder: Path) -> None:
        self.total = sum(sizes)
        self.workers = workers or cores()
        # How many workers an executor has is its own affair: many parts serve all.
        share = PART_BYTES if executor is not None and workers is None else self.total / self.workers / PARTS_A_WORKER
        self.cuts = self.workers > 1 or executor is not None
        self.part = min(max(PART_BYTES, share), MOST_PART_BYTES) if self.cuts else math.inf
        self.lease = folder / f".{uuid.uuid4().hex[:12]}.running"

    def output(self, path: Path, specs: Sequence[TokenizeSpec], sizes: Sequence[int]) -> _Output:
        """The parts of one output."""
        groups: list[tuple[list[TokenizeSpec], float]] = []
        for spec, size in zip(specs, sizes, strict=True):
            ranges = self._ranges(spec, size)
            if len(ranges) == 1 and groups and groups[-1][1] + size <= self.part:
                groups[-1] = ([*groups[-1][0], spec], groups[-1][1] + size)
            else:
                groups += [([of_range], size / len(ranges)) for of_range in ranges]
        if len(groups) == 1:
            return _Output(path, [_Part(tuple(groups[0][0]), path, groups[0][1], False, self.lease)])
        folder = draft_name(path)
        return _Output(
            path,
            [_Part(tuple(part), folder / f"{n}.bin", size, True, self.lease) for n, (part, size) in enumerate(groups)],
        )

    def _ranges(self, spec: TokenizeSpec, size: int) -> list[TokenizeSpec]:
        """The spec, or where its file is large enough for several workers, ranges of it."""
        if not self.cuts or spec.byte_range is not None or size < 2 * self.part or not can_be_split(spec.input):
            return [spec]
        count = int(-(-size // self.part))
        edges = [size * number // count for number in range(count)] + [size]
        return [replace(spec, byte_range=(edges[n], edges[n + 1])) for n in range(count)]


def _run(
    outputs: Sequence[_Output],
    plan: _Plan,
    executor: Executor | None,
    on_done: Callable[[int, TokenizeResult], None] | None,
    on_progress: Progress | None,
    stop: threading.Event | None,
) -> list[TokenizeResult]:
    """Carry out the parts of all outputs, and finish each output when its last part is done."""
    finished: dict[int, TokenizeResult] = {}
    done, tokens = 0.0, 0
    work_done: WorkDone | None = None

    def tick() -> None:
        if stop is not None and stop.is_set():
            raise Interrupted(f"{len(outputs) - len(finished)} files are left to tokenize")
        if on_progress is not None:
            size, count = (done, tokens) if work_done is None else work_done.read()
            on_progress(min(size / plan.total, 1.0), count)

    def on_killed() -> None:
        for folder in {output.path.parent for output in outputs}:
            clear_drafts(folder)

    parts = [((n, m), part) for n, output in enumerate(outputs) for m, part in enumerate(output.parts)]
    parts.sort(key=lambda entry: -entry[1].size)
    with contextlib.ExitStack() as stack:
        stack.callback(_clean, outputs, finished)
        try:
            plan.lease.parent.mkdir(parents=True, exist_ok=True)
            plan.lease.touch()
        except OSError as error:
            raise write_error(outputs[0].path, error) from error
        stack.callback(plan.lease.unlink, missing_ok=True)
        if executor is not None:
            results = _spread(parts, executor, tick, grace=_GRACE)
        elif plan.total < HERE_BYTES or (len(parts) == 1 and stop is None):
            results = _here(parts, tick, on_progress)
        else:
            work_done = WorkDone()
            pool = stack.enter_context(process_pool(min(plan.workers, len(parts)), work_done, on_killed))
            results = _spread(parts, pool, tick, grace=0)
        for (n, m), result in stack.enter_context(contextlib.closing(results)):
            whole = outputs[n].add(m, result)
            done, tokens = done + outputs[n].parts[m].size, tokens + result.tokens
            if whole is not None:
                finished[n] = whole
                if on_done is not None:
                    on_done(n, whole)
        if on_progress is not None:
            on_progress(1.0, tokens)
    return [finished[n] for n in range(len(outputs))]


_PartId = tuple[int, int]
"""(number of the output, number of the part in it)"""
_Results = Generator[tuple[_PartId, TokenizeResult], None, None]


def _here(parts: Sequence[tuple[_PartId, _Part]], tick: Callable[[], None], on_progress: Progress | None) -> _Results:
    """Do the parts in this process."""
    total, before, tokens_before = sum(part.size for _, part in parts), 0.0, 0

    def tell(part: _Part, number: int, share: float, tokens: int) -> None:
        if on_progress is not None:
            on_progress((before + _read(part, number, share)) / total, tokens_before + tokens)

    for part_id, part in parts:
        tick()
        result = tokenize_into(part.specs, part.output, durable=not part.hidden, on_batch=partial(tell, part))
        before, tokens_before = before + part.size, tokens_before + result.tokens
        yield part_id, result


def _spread(
    parts: Sequence[tuple[_PartId, _Part]], executor: Executor, tick: Callable[[], None], *, grace: float
) -> _Results:
    """Do the parts in the workers of an executor.

    When that ends early, work that has begun goes on to its next look at the lease, after a batch; it is waited for.

    Args:
        grace: for so many seconds at most.
    """
    pending: dict[Future[TokenizeResult], tuple[_PartId, _Part]] = {}
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
        raise DataError(
            "a process that tokenizes was ended from outside; the system does that when memory runs out",
            hint="use fewer workers",
        ) from None
    except BaseException:
        for _, part in pending.values():
            part.lease.unlink(missing_ok=True)
        wait([future for future in pending if not future.cancel()], timeout=grace)
        raise


def _work(part: _Part) -> TokenizeResult:
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
    result = tokenize_into(part.specs, part.output, durable=not part.hidden, on_batch=on_batch)
    tell(part.size, result.tokens)
    return result


def _read(part: _Part, number: int, share: float) -> float:
    """Bytes of a part that are read: files are taken as equally large."""
    return part.size * (number + share) / len(part.specs)


def _clean(outputs: Sequence[_Output], finished: dict[int, TokenizeResult]) -> None:
    for number, output in enumerate(outputs):
        if number not in finished:
            output.clean()
