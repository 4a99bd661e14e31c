"""Python source files as text: code without docstrings, docstrings without examples."""

from __future__ import annotations

import ast
import io
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

# Test data, tables and what is installed beside the library.
_INSTALLED = {"site-packages", "dist-packages", "__pycache__", "lib-dynload"}
_LEFT_OUT = _INSTALLED | {"test", "tests", "idle_test", "encodings", "pydoc_data"}
_LEAST_CHARACTERS = 80

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def library_folder() -> Path:
    """The folder of Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def standard_library() -> list[Path]:
    """The library's ``.py`` files in an order that mixes its parts, so that the first files are a fair sample."""
    root = library_folder()
    found: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found.extend(Path(parent) / name for name in names if name.endswith(".py"))
    return sorted(found, key=lambda path: xxhash.xxh3_128_digest(path.relative_to(root).as_posix().encode()))


class PythonSource(NamedTuple):
    """A source text with ``\\n`` at its lines' ends, and its syntax tree."""

    text: str
    tree: ast.Module


def read_source(path: Path) -> PythonSource | None:
    """A source file; None if this Python does not parse it."""
    content = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        return PythonSource(text, ast.parse(text))
    except (SyntaxError, ValueError):
        return None


def docstrings(source: PythonSource) -> Iterator[str]:
    """The docstrings of a source without doctest examples, where enough words are left."""
    for node in ast.walk(source.tree):
        if isinstance(node, _Documented) and (text := ast.get_docstring(node)):
            text = re.sub(r"^[ \t]*>>>.*\n?(?:[ \t]*\S.*\n?)*", "", text, flags=re.MULTILINE)
            text = re.sub(r"\n{3,}", "\n\n", text).strip()
            if len(text) >= _LEAST_CHARACTERS:
                yield text


def without_docstrings(source: PythonSource) -> str:
    """The source text without its docstrings; where nothing else is left of a body, ``pass`` is put in."""
    lines: list[bytes | None] = [*source.text.encode().split(b"\n")]  # ast counts columns in UTF-8 bytes
    for node in ast.walk(source.tree):
        if not isinstance(node, _Documented) or ast.get_docstring(node, clean=False) is None:
            continue
        literal = node.body[0]
        first, last = literal.lineno - 1, (literal.end_lineno or literal.lineno) - 1
        head, tail = (lines[first] or b"")[: literal.col_offset], (lines[last] or b"")[literal.end_col_offset :]
        if tail.strip() and not tail.lstrip().startswith(b"#"):
            continue  # a statement follows on the line
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        kept = (head + (b"pass" if alone else b"") + tail).rstrip()
        lines[first : last + 1] = [kept or None] + [None] * (last - first)
        if not kept and last + 1 < len(lines) and not (lines[last + 1] or b"").strip():
            lines[last + 1] = None
    return re.sub(r"\n{4,}", "\n\n\n", b"\n".join(line for line in lines if line is not None).decode())


def top_level_parts(source: str) -> Iterator[str]:
    """The source cut before each top-level statement and the comments above it; together they are the source."""
    lines = re.split(r"(?<=\n)", source)
    start = 0
    for node in ast.parse(source).body[1:]:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1
        while first > start and lines[first - 1].startswith("#"):
            first -= 1
        if first > start:
            yield "".join(lines[start:first])
            start = first
    yield "".join(lines[start:])
