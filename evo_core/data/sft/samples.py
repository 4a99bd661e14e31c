"""Files of records to samples, on all cores, in the order of the records."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from evo_core.data.raw.documents import OnError
from evo_core.data.sft.encode import Sample, SampleEncoder
from evo_core.data.sft.formats import find_format
from evo_core.data.sft.pieces import NoRoomError, RecordError
from evo_core.data.sft.records import RecordPosition, RecordReader
from evo_core.data.shards.format import encode_line
from evo_core.data.tokenize.tokenizers import load_tokenizer
from evo_core.errors import DataError
from evo_core.process import die_with_parent

_RECORDS = 256  # in a batch: one message to a worker and back

Progress = Callable[[float, int], None]
"""Called now and then with (share of the bytes done, tokens so far)."""


@dataclass(frozen=True)
class SftSettings:
    """How records become samples; plain values, so that they can be sent to another process.

    Attributes:
        tokenizer: a tokenizer's file or folder.
        record_format: ``alpaca``, ``chat``, ``sharegpt`` or ``package.module:function``.
        chat_template: a Jinja file, for ``chat`` and ``sharegpt``; None takes the one beside the tokenizer.
        max_length: samples are cut to as many tokens, an end id included; those whose prompt fills it are left out.
        bos, eos: whether begin and end ids stand around a sample; None leaves it to the format.
        on_error: ``raise`` at the first wrong record, or ``skip`` and count them.
    """

    tokenizer: Path
    record_format: str = "alpaca"
    chat_template: Path | None = None
    max_length: int = 2048
    bos: bool | None = None
    eos: bool | None = None
    on_error: OnError = "raise"

    def encoder(self) -> SampleEncoder:
        """What makes the samples.

        Raises:
            DataError: the tokenizer, the format or a value does not work.
        """
        if self.max_length < 2:
            raise DataError(f"must be at least 2, not {self.max_length}", key="max_length")
        tokenizer = load_tokenizer(self.tokenizer)
        record_format = find_format(self.record_format, tokenizer, self.chat_template)
        return SampleEncoder(tokenizer, record_format, max_length=self.max_length, bos=self.bos, eos=self.eos)


@dataclass(frozen=True)
class SampleLine:
    """A sample as a line of a ``.bin``.

    Attributes:
        line: with its newline.
        tokens: ids in it.
        trained: ids that are trained on.
        cut: whether the sample was longer.
        file: the number of its file.
    """

    line: bytes
    tokens: int
    trained: int
    cut: bool
    file: int


@dataclass
class Skipped:
    """Records that were left out, counted while samples are read.

    Attributes:
        count: how many were wrong.
        first: what was wrong with the first that was found.
        no_room: how many are right, but with a prompt that leaves no room for an answer.
    """

    count: int = 0
    first: DataError | None = None
    no_room: int = 0

    def add(self, count: int, error: DataError | None) -> None:
        self.count += count
        self.first = self.first or error


def read_samples(
    files: Sequence[Path],
    settings: SftSettings,
    encoder: SampleEncoder,
    skipped: Skipped,
    *,
    workers: int = 1,
    on_progress: Progress = lambda share, tokens: None,
) -> Generator[SampleLine, None, None]:
    """The samples of files, one after the other; the same with any number of workers.

    Args:
        files: see `evo_core.data.sft.records`.
        settings: how.
        encoder: of these settings; other processes make their own.
        skipped: counts the records left out, where the settings allow it.
        workers: processes. One batch of records is done in this one.

    Raises:
        DataError: naming the file and the record.
    """
    sizes = [file.stat().st_size for file in files]
    tokens = 0
    for batch, result in _encoded(_batches(files, settings.on_error, skipped), encoder, settings, workers):
        for found in result:
            if found is None:
                skipped.no_room += 1
                continue
            if isinstance(found, DataError):
                if settings.on_error == "raise":
                    raise found
                skipped.add(1, found)
                continue
            line, count, trained, cut = found
            tokens += count
            yield SampleLine(line, count, trained, cut, batch.file)
        done = sum(sizes[: batch.file]) + batch.done * sizes[batch.file]
        on_progress(done / max(1, sum(sizes)), tokens)


@dataclass(frozen=True)
class _Batch:
    """Records of one file, and the share of it that is read with them."""

    file: int
    done: float
    records: list[tuple[RecordPosition, Any]]


_Encoded = tuple[bytes, int, int, bool] | DataError | None
"""A sample's line, ids in it, ids trained on and whether it was cut; what is wrong with the record; None where its
prompt leaves no room."""


def _batches(files: Sequence[Path], on_error: OnError, skipped: Skipped) -> Iterator[_Batch]:
    for number, file in enumerate(files):
        reader = RecordReader(file, on_error=on_error)
        while records := list(islice(reader, _RECORDS)):
            yield _Batch(number, reader.done, records)
        skipped.add(reader.skipped, reader.first_error)


def _encoded(
    batches: Iterator[_Batch], encoder: SampleEncoder, settings: SftSettings, workers: int
) -> Iterator[tuple[_Batch, list[_Encoded]]]:
    """Each batch with its result, in order."""
    first = list(islice(batches, 2))
    batches = chain(first, batches)
    if workers == 1 or len(first) < 2:
        for batch in batches:
            yield batch, _encode(encoder, batch.records)
        return
    try:
        yield from _spread(batches, encoder, settings, workers)
    except BrokenProcessPool:
        raise DataError(
            "a process that tokenizes was ended from outside; the system does that when memory runs out",
            hint="use fewer workers",
        ) from None


def _spread(
    batches: Iterator[_Batch], encoder: SampleEncoder, settings: SftSettings, workers: int
) -> Iterator[tuple[_Batch, list[_Encoded]]]:
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(settings,))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        pending: deque[tuple[_Batch, Future[list[_Encoded]]]] = deque()
        for batch in batches:
            pending.append((batch, pool.submit(_encode_here, batch.records)))
            if len(pending) > 2 * workers:
                done, future = pending.popleft()
                yield done, _result(future, done, encoder)
        while pending:
            done, future = pending.popleft()
            yield done, _result(future, done, encoder)


def _result(future: Future[list[_Encoded]], batch: _Batch, encoder: SampleEncoder) -> list[_Encoded]:
    try:
        return future.result()
    except RecursionError:  # a record is nested too deeply to be sent to another process
        return _encode(encoder, batch.records)


def _encode(encoder: SampleEncoder, records: list[tuple[RecordPosition, Any]]) -> list[_Encoded]:
    samples = encoder.encode_batch([record for _, record in records])
    return [_as_line(position, found) for (position, _), found in zip(records, samples, strict=True)]


def _as_line(position: RecordPosition, found: Sample | RecordError) -> _Encoded:
    if isinstance(found, NoRoomError):
        return None
    if isinstance(found, RecordError):
        return position.error(str(found))
    return encode_line(found.ids), len(found.ids), found.trained, found.cut


_encoder_here: SampleEncoder
"""The encoder of a worker process."""


def _start(settings: SftSettings) -> None:
    global _encoder_here
    die_with_parent()
    _encoder_here = settings.encoder()


def _encode_here(records: list[tuple[RecordPosition, Any]]) -> list[_Encoded]:
    return _encode(_encoder_here, records)
