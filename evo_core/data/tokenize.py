"""One raw file to one ``.bin`` with its meta: the unit that a process pool or a job array spreads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from evo_core.data.documents import DocumentReader, Mode, OnError, read_documents
from evo_core.data.format import BinWriter
from evo_core.data.tokenizers import Tokenizer, load_tokenizer

# Characters that are tokenized in one call: enough to lose no time between calls, little memory.
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class TokenizeSpec:
    """What `tokenize_file` does; plain values, so that it can be sent to another process.

    Attributes:
        input: raw file (see `evo_core.data.documents`).
        output: the ``.bin`` to write; ``.bin.meta`` goes beside it.
        tokenizer: a tokenizer's file or folder.
        text_keys: fields of a record that make its document.
        mode: ``text``, or ``internevo`` for the original tool's reading of JSON.
        bos, eos: whether a document begins with the begin id and ends with the end id.
        on_error: ``raise`` at the first wrong record, or ``skip`` and count them.
    """

    input: Path
    output: Path
    tokenizer: Path
    text_keys: tuple[str, ...] = ("text",)
    mode: Mode = "text"
    bos: bool = True
    eos: bool = True
    on_error: OnError = "raise"


@dataclass(frozen=True)
class TokenizeResult:
    """What came out of one file.

    Attributes:
        documents, tokens: written to the ``.bin``.
        bytes: UTF-8 size of the documents' text.
        skipped: records left out.
        first_error: why the first of them was; None if there is none.
    """

    documents: int
    tokens: int
    bytes: int
    skipped: int = 0
    first_error: str | None = None


def tokenize_file(spec: TokenizeSpec) -> TokenizeResult:
    """Tokenize one raw file. A file without documents gives a ``.bin`` without lines.

    Raises:
        DataError: the file or a record is wrong, or the tokenizer lacks bos or eos. Nothing is written then.
    """
    tokenizer = _tokenizer(spec.tokenizer, _modified(spec.tokenizer))
    documents = read_documents(spec.input, spec.text_keys, mode=spec.mode, on_error=spec.on_error)
    size = 0
    with BinWriter(spec.output) as writer:
        for texts in _batches(documents):
            size += sum(len(text.encode()) for text in texts)
            for ids in tokenizer.encode_batch(texts, bos=spec.bos, eos=spec.eos):
                if ids:
                    writer.write(ids)
    first_error = None if documents.first_error is None else str(documents.first_error)
    return TokenizeResult(writer.documents, writer.tokens, size, documents.skipped, first_error)


@lru_cache(maxsize=2)
def _tokenizer(path: Path, modified: int) -> Tokenizer:
    """A process of a pool tokenizes many files with one tokenizer; `modified` tells a new one of that name."""
    return load_tokenizer(path)


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _batches(documents: DocumentReader) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for text in documents:
        texts.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts
