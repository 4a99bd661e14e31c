"""The pages say what is there: links lead somewhere, and commands and kinds that they name exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from evo_core.command_line.mistakes import UsageError, mistake
from evo_core.data.commands import app as data_app
from flows.cli import app
from tasks.registry import BUILT_IN
from tests.command_line.commands import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PIPELINES = sorted((ROOT / "configs" / "pipelines").glob("*.yaml"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RANKS = r"(?:torchrun .*?|srun .*?)?(?:python )?-m evo_core\."
EVO = re.compile(rf"(?:\$ )?(?:[A-Z]+=\S+ )*(?:\S*bin/)?(?:evo |{RANKS})(.*)")


def names_of(typer_app: typer.Typer) -> set[str]:
    return set(getattr(typer.main.get_command(typer_app), "commands"))  # noqa: B009


def command_lines(text: str) -> Iterator[tuple[str, bool]]:
    """What is typed after `evo` in a page's blocks, in the code within its text and in a file's comments, and whether
    it is a whole line."""
    blocks = [block for language, block in BLOCK.findall(text) if language in ("", "console", "bash")]
    lines = [(line, True) for block in blocks for line in re.sub(r"\\\n *", " ", block).splitlines()]
    lines += [(line, True) for line in re.findall(r"^#  +(evo .*)$", text, re.MULTILINE)]
    lines += [(line, False) for line in re.findall(r"`([^`\n]*--[^`\n]+)`", BLOCK.sub("", text))]
    for line, whole in lines:
        if (found := EVO.match(line)) and "…" not in found[1] and "COMMAND" not in found[1]:
            yield re.split(r"   +| [|>&] ", found[1])[0], whole


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`|bin/)evo ([a-z][a-z-]+)(?: ([a-z][a-z-]+))?", text, re.MULTILINE)
    assert {command for command, _ in named} <= names_of(app)
    assert {sub for command, sub in named if command == "data" and sub} <= names_of(data_app)


@pytest.mark.parametrize("page", [*PAGES, *PIPELINES], ids=lambda page: page.name)
def test_command_lines_are_taken(page: Path) -> None:
    for line, whole in command_lines(page.read_text(encoding="utf-8")):
        words = shlex.split(re.sub(r"\\\|[\w-]+|[\[\]]", "", line), comments=True)
        try:
            parse(["evo", *words])
        except UsageError as error:
            assert not whole and mistake(error).message == "is required", f"{line}: {mistake(error)}"


def test_there_are_command_lines() -> None:
    found = {page.name: len(list(command_lines(page.read_text(encoding="utf-8")))) for page in [*PAGES, *PIPELINES]}
    assert found["README.md"] >= 9 and found["data.md"] >= 10 and found["evaluation.md"] >= 4
    assert found["checkpoints.md"] >= 5 and found["generation.md"] >= 4 and all(found[page.name] for page in PIPELINES)


def test_every_kind_is_on_the_page_of_pipelines() -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert not [kind for kind in BUILT_IN if f"`{kind}`" not in page]
