"""docs/data.md, executed: its files are written, its commands run, and their output compared with what it shows.

In a ``console`` block ``$ cat FILE`` shows a file that the reader has, ``$ evo …`` a command with its output, in which
a line ``…`` stands for any lines. A ``python`` block that begins with ``# name.py`` is a file too.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "data.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    shutil.copy(ROOT / "tests" / "tasks" / "tokenizer.json", "tokenizer.json")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if not name.startswith(("evo_core", "flows", "tasks")):
            sys.modules.pop(name, None)


def commands(block: str) -> list[tuple[str, str]]:
    """(command, what the page shows below it)."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def run(command: str) -> str:
    """What a command prints; a wrong record or file ends it as it ends `evo`."""
    from evo_core.errors import UserError

    result = CliRunner().invoke(app, shlex.split(command)[1:])
    if isinstance(result.exception, UserError):
        return f"{result.output}evo: {result.exception}\n"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def shown(output: str) -> list[str]:
    """Its lines, without blanks at their ends and blank lines around them."""
    return "\n".join(line.rstrip() for line in output.split("\n")).strip("\n").split("\n")


def matches(expected: list[str], output: list[str]) -> bool:
    pattern = "\n".join(r"(?:.*\n)*?.*" if line.strip() == "…" else re.escape(line) for line in expected)
    return re.fullmatch(pattern, "\n".join(output)) is not None


def test_the_page(folder: Path) -> None:
    ran = 0
    for language, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            name = re.match(r"# (\S+\.py)\n", block)
            if name:
                Path(name[1]).write_text(block, encoding="utf-8")
            continue
        for command, expected in commands(block):
            if command.startswith("cat "):
                path = Path(command.removeprefix("cat "))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(expected, encoding="utf-8")
            else:
                output = shown(run(command))
                assert matches(shown(expected), output), "\n".join([command, *output])
                ran += 1
    assert ran >= 8
