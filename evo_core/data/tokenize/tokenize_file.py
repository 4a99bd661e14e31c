"""One raw file, or a range of it, to one ``.bin`` with its meta: the unit that `fan_out` spreads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from evo_core.data.raw.documents import MAX_RECORD_BYTES, DocumentReader, Mode, OnError, read_documents
from evo_core.data.raw.lines import ByteRange
from evo_core.data.shards.document_types import TypeRuns, read_types, types_path
from evo_core.data.shards.format import BinWriter, write_error
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.storage.location import Location

# Characters that are tokenized in one call: enough to lose no time between calls, little memory.
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class TokenizeSpec:
    """What `tokenize_file` does; plain values, so that it can be sent to another process.

    Attributes:
        input: raw file, a path or URI (see `evo_core.data.raw.documents`).
        output: the ``.bin`` to write; ``.bin.meta`` goes beside it.
        tokenizer: a tokenizer's file or folder.
        text_keys: fields of a record that make its document.
        mode: ``text``, or ``internevo`` to read JSON as InternEvo's tool does.
        bos, eos: whether a document begins with the begin id and ends with the end id.
        on_error: ``raise`` at the first wrong record, or ``skip`` and count them.
        type_key: field of a record that names its data type; ``.bin.types`` then goes beside the ``.bin`` as well.
        byte_range: only the lines that begin there.
        max_record_bytes: longest line or record.
    """

    input: Location
    output: Path
    tokenizer: Location
    text_keys: tuple[str, ...] = ("text",)
    mode: Mode = "text"
    bos: bool = True
    eos: bool = True
    on_error: OnError = "raise"
    type_key: str | None = None
    byte_range: ByteRange | None = None
    max_record_bytes: int = MAX_RECORD_BYTES


@dataclass(frozen=True)
class TokenizeResult:
    """What came out of one file.

    Attributes:
        documents, tokens: written to the ``.bin``.
        bytes: UTF-8 size of the documents' text.
        skipped: records left out.
        first_error: why the first of them was; None if there is none.
        blank: texts that are no documents: null, blank, or such that the tokenizer leaves nothing of them.
        types: with a type_key, type to (documents, tokens).
    """

    documents: int
    tokens: int
    bytes: int
    skipped: int = 0
    first_error: str | None = None
    blank: int = 0
    types: dict[str, tuple[int, int]] = field(default_factory=dict)


OnBatch = Callable[[int, float, int], None]
"""Called after each batch with (number of the file, share of it that is read, tokens in all). An error that it raises
ends the work."""


def tokenize_file(spec: TokenizeSpec) -> TokenizeResult:
    """Tokenize one raw file. A file without documents gives a ``.bin`` without lines.

    Raises:
        DataError: the file or a record is wrong, the tokenizer lacks bos or eos, or the output cannot be written.
            Nothing is written then.
    """
    return tokenize_into([spec], spec.output)


def tokenize_into(
    specs: Sequence[TokenizeSpec], output: Path, *, durable: bool = True, on_batch: OnBatch | None = None
) -> TokenizeResult:
    """Tokenize raw files into one ``.bin``, one behind the other; their own outputs are ignored.

    Args:
        specs: either all with a type_key or all without.
        durable: as `BinWriter` has it.

    Raises:
        DataError: as `tokenize_file`.
    """
    size, blank, types = 0, 0, TypeRuns()
    readers: list[DocumentReader] = []
    with _writing(output, durable=durable) as writer:
        for number, spec in enumerate(specs):
            tokenizer = _tokenizer(spec.tokenizer, _modified(spec.tokenizer))
            readers.append(_documents(spec))
            for texts, names in _batches(readers[-1]):
                # Asking whether a text is ASCII costs nothing, encoding it only to measure it does.
                size += sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
                for number_in_batch, ids in enumerate(tokenizer.encode_batch(texts, bos=spec.bos, eos=spec.eos)):
                    if len(ids) == spec.bos + spec.eos:  # of a zero-width space, say, some tokenizers leave nothing
                        blank += 1
                    else:
                        writer.write(ids)
                        if names:
                            types.add(names[number_in_batch], 1, len(ids))
                if on_batch is not None:
                    on_batch(number, readers[-1].done, writer.tokens)
        _put_types(writer, types, specs)
    errors = (reader.first_error for reader in readers)
    first_error = next((str(error) for error in errors if error is not None), None)
    skipped = sum(reader.skipped for reader in readers)
    blank += sum(reader.blank for reader in readers)
    return TokenizeResult(writer.documents, writer.tokens, size, skipped, first_error, blank, types.counts)


def join(
    parts: Sequence[Path], results: Sequence[TokenizeResult], output: Path, specs: Sequence[TokenizeSpec]
) -> TokenizeResult:
    """Put token files behind one another into one ``.bin``, as if one process had written it.

    Args:
        parts: the token files.
        results: of each part.
        specs: what the parts were made by.

    Raises:
        DataError: a part is missing or damaged, or the output cannot be written. Nothing is written then.
    """
    types = TypeRuns()
    with _writing(output) as writer:
        for part in parts:
            lengths = writer.append(part)
            if specs[0].type_key is not None:
                types.extend(*read_types(part), lengths)
        _put_types(writer, types, specs)
    return TokenizeResult(
        writer.documents,
        writer.tokens,
        sum(result.bytes for result in results),
        sum(result.skipped for result in results),
        next((result.first_error for result in results if result.first_error is not None), None),
        sum(result.blank for result in results),
        types.counts,
    )


@contextlib.contextmanager
def _writing(output: Path, *, durable: bool = True) -> Iterator[BinWriter]:
    """A writer whose troubles are the user's to mend; those of reading have been told by whoever read."""
    try:
        with BinWriter(output, durable=durable) as writer:
            yield writer
    except OSError as error:
        raise write_error(output, error) from error


def _put_types(writer: BinWriter, types: TypeRuns, specs: Sequence[TokenizeSpec]) -> None:
    """Without a type_key an earlier file of types goes: it would be taken for this one's."""
    typed = bool(specs) and specs[0].type_key is not None
    writer.put_beside(types_path(writer.path), types.content() if typed else None)


def _documents(spec: TokenizeSpec) -> DocumentReader:
    return read_documents(
        spec.input,
        spec.text_keys,
        mode=spec.mode,
        on_error=spec.on_error,
        type_key=spec.type_key,
        byte_range=spec.byte_range,
        max_record_bytes=spec.max_record_bytes,
    )


@lru_cache(maxsize=2)
def _tokenizer(path: Location, modified: int) -> Tokenizer:
    """A process of a pool tokenizes many files with one tokenizer; `modified` tells a new one of that name."""
    return load_tokenizer(path)


def _modified(path: Location) -> int:
    return Path(path).stat().st_mtime_ns if Path(path).exists() else 0


def _batches(documents: DocumentReader) -> Iterator[tuple[list[str], list[str]]]:
    """Texts, and where records name types those of the same documents."""
    texts: list[str] = []
    names: list[str] = []
    size = 0
    for text in documents:
        texts.append(text)
        if documents.type is not None:
            names.append(documents.type)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield texts, names
            texts, names, size = [], [], 0
    if texts:
        yield texts, names
