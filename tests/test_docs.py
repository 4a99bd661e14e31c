"""The pages say what is there: links lead somewhere, and commands and kinds that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from evo_core.data.commands import app as data_app
from flows.cli import app
from tasks.registry import BUILT_IN

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def names_of(typer_app: typer.Typer) -> set[str]:
    return set(getattr(typer.main.get_command(typer_app), "commands"))  # noqa: B009


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


def test_every_kind_is_on_the_page_of_pipelines() -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert not [kind for kind in BUILT_IN if f"`{kind}`" not in page]
