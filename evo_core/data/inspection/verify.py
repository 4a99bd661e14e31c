"""Checks every offset, length, line and id of token files, on all cores, and lists what is wrong.

A reader of a training job stops at the first damage. This goes on, so that a person sees how much is damaged.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from evo_core.data.shards.format import meta_path, open_token_file, read_meta
from evo_core.errors import DataError
from evo_core.process import die_with_parent

_PREFIX, _SUFFIX = b'{"tokens": [', b"]}\n"
_BETWEEN = _SUFFIX + _PREFIX
_TASK_BYTES = 16 << 20
_BATCH_BYTES = 1 << 20
_IN_PROCESS_BYTES = 32 << 20
_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Problem:
    """Something wrong with a document, or with a file as a whole (line None)."""

    file: Path
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass
class Report:
    """What was found.

    Attributes:
        files, documents, tokens: checked.
        count: problems in all.
        problems: the first of them, by file and line.
    """

    files: int = 0
    documents: int = 0
    tokens: int = 0
    count: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem, limit: int) -> None:
        """Count a problem, and keep it if there is room."""
        self.count += 1
        if len(self.problems) < limit:
            self.problems.append(problem)


def verify(
    paths: Sequence[Path],
    *,
    vocab_size: int | None = None,
    limit: int = 20,
    workers: int = 1,
    on_progress: Callable[[float, int], None] = lambda share, tokens: None,
) -> Report:
    """Check token files.

    Args:
        paths: the ``.bin`` files.
        vocab_size: every id, its minus apart, must be below it; None leaves that out.
        limit: problems listed of each file, and in all; the others are counted.
        workers: processes; a few megabytes are done in this one.
        on_progress: called with (share of the bytes done, tokens).
    """
    report = Report(files=len(paths))
    total, done = sum(path.stat().st_size for path in paths if path.is_file()), 0
    tasks = (task for path in paths for task in _tasks(path, vocab_size, limit, report))
    for task, found in _run(tasks, workers if total > _IN_PROCESS_BYTES else 1):
        report.documents += found.documents
        report.tokens += found.tokens
        report.count += found.count
        report.problems += found.problems[: limit - len(report.problems)]
        done += task.size
        on_progress(done / total, report.tokens)
    return report


@dataclass(frozen=True)
class _Task:
    """Some documents of a file.

    Attributes:
        first: how many come before them.
        bounds: int64 [documents + 1], the offset of each, and where the last one ends.
        lengths: int64 [documents].
    """

    path: Path
    first: int
    bounds: np.ndarray
    lengths: np.ndarray
    vocab_size: int | None
    limit: int

    @property
    def size(self) -> int:
        """Bytes to read."""
        return int(self.bounds[-1] - self.bounds[0])


def _tasks(path: Path, vocab_size: int | None, limit: int, report: Report) -> Iterator[_Task]:
    """The documents of a file in the order of their offsets; what is wrong with its meta goes to the report."""
    try:
        table = _Table(path)
    except DataError as error:
        report.add(Problem(Path(error.file or path), None, error.message), limit)
        return
    for message in table.problems:
        report.add(Problem(path, None, message), limit)
    for first, last in _ranges(table.bounds, _TASK_BYTES):
        yield _Task(path, first, table.bounds[first : last + 1], table.lengths[first:last], vocab_size, limit)


def _ranges(bounds: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Documents [first, last) of at most `size` bytes, or one."""
    first, end = 0, len(bounds) - 1
    while first < end:
        last = int(np.searchsorted(bounds, bounds[first] + size, side="right")) - 1
        last = min(max(last, first + 1), end)
        yield first, last
        first = last


def _run(tasks: Iterator[_Task], workers: int) -> Iterator[tuple[_Task, Report]]:
    """Each task with its report, in order."""
    if workers == 1:
        for task in tasks:
            yield task, _check(task)
        return
    pending: deque[tuple[_Task, Future[Report]]] = deque()
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=die_with_parent)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        for task in tasks:
            pending.append((task, pool.submit(_check, task)))
            if len(pending) > 4 * workers:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()


class _Table:
    """A meta by ascending offsets, as far as they lie in the ``.bin``.

    Attributes:
        size: bytes of the ``.bin``.
        bounds: int64 [documents + 1], their offsets and the size.
        lengths: int64 [documents].
        problems: what is wrong with the meta as a whole.

    Raises:
        DataError: the meta is missing or not readable.
    """

    def __init__(self, path: Path) -> None:
        with open_token_file(path) as file:
            self.size = os.fstat(file.fileno()).st_size
        meta = read_meta(meta_path(path))
        offsets = meta[:, 0]
        self.problems: list[str] = []
        if overflown := int((offsets < 0).sum()):
            self.problems.append(
                f"{overflown} of {len(meta)} offsets in its meta are negative: 32-bit numbers overflowed"
            )
        if past := int((offsets >= self.size).sum()):
            self.problems.append(
                f"its meta points past its end ({self.size} bytes) for {past} of {len(meta)} documents, "
                f"first at line {int(np.argmax(offsets >= self.size)) + 1}"
            )
        meta = meta[(offsets >= 0) & (offsets < self.size)]
        meta = meta[np.argsort(meta[:, 0], kind="stable")]
        self.bounds, self.lengths = np.append(meta[:, 0], self.size), np.ascontiguousarray(meta[:, -1])
        if (start := int(self.bounds[0])) > 0:
            self.problems.append(f"its meta lists nothing in the first {start} bytes")


def _check(task: _Task) -> Report:
    report = Report()
    bounds, lengths = task.bounds, task.lengths
    with task.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for first, last in _ranges(bounds, _BATCH_BYTES):
            if not _is_well(content, bounds[first : last + 1], lengths[first:last], task.vocab_size):
                for number in range(first, last):
                    ends = int(bounds[number]), int(bounds[number + 1])
                    if message := _wrong(content, *ends, int(lengths[number]), task.vocab_size):
                        report.add(Problem(task.path, task.first + number + 1, message), task.limit)
    report.documents, report.tokens = len(lengths), int(lengths.sum())
    return report


def _is_well(content: mmap.mmap, bounds: np.ndarray, lengths: np.ndarray, vocab_size: int | None) -> bool:
    """Whether these documents are as we write them and right; False needs a closer look."""
    text = content[int(bounds[0]) : int(bounds[-1])]
    if not text.startswith(_PREFIX) or not text.endswith(_SUFFIX) or not lengths.all():
        return False
    lists = text[len(_PREFIX) : -len(_SUFFIX)].split(_BETWEEN)
    if len(lists) != len(lengths):
        return False
    sizes = np.fromiter(map(len, lists), np.int64, len(lists)) + len(_BETWEEN)
    commas = np.fromiter((ids.count(b",") for ids in lists), np.int64, len(lists))
    if (np.diff(bounds) != sizes).any() or (commas + 1 != lengths).any():
        return False
    joined = b",".join(lists)
    if joined.translate(None, b"0123456789, -"):
        return False
    try:
        ids = np.fromstring(joined, dtype=np.int64, sep=",")
    except ValueError:
        return False
    largest = _LARGEST_ID if vocab_size is None else min(vocab_size - 1, _LARGEST_ID)
    return len(ids) == lengths.sum() and bool((ids <= largest).all() and (ids >= -largest).all())


def _wrong(content: mmap.mmap, start: int, end: int, length: int, vocab_size: int | None) -> str | None:
    """What is wrong with one document; None if nothing is."""
    if start and content[start - 1 : start] != b"\n":
        return f"its offset {start} is not at the start of a line"
    if start == end:
        return f"its offset {start} is that of another document too"
    line = content[start:end]
    if not line.endswith(b"\n"):
        if end == len(content):
            return "the line has no end: the file was cut off"
        return f"the next document's offset {end} lies inside its line"
    if (lines := line.count(b"\n")) > 1:
        return f"{lines - 1} lines after it are not in the meta"
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not a JSON line ({error})"
    ids = record.get("tokens") if isinstance(record, dict) else None
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        return 'expected {"tokens": [ids]}'
    if len(ids) != length:
        return f"{len(ids)} tokens where the meta says {length}"
    top = max(map(abs, ids), default=0)
    if vocab_size is not None and top >= vocab_size:
        return f"token id {top} is outside the vocabulary of {vocab_size}"
    return f"token id {top} does not fit into 32 bits" if top > _LARGEST_ID else None
