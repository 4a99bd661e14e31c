"""The report of a run: the HTML file and its short form."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from flows.show.report import print_report, report_path, write_report
from tests.browser import colours, open_browser
from tests.flows.orchestration.small import Small
from tests.flows.show.conftest import Run


class Addresses(HTMLParser):
    """Everything that a page would load or lead to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]


def printed(run: Run, width: int = 120) -> str:
    console = Console(width=width, record=True, file=None, highlight=False, quiet=False)
    with console.capture() as capture:
        print_report(run.plan, run.refs, run.store, console)
    return capture.get()


def test_the_short_report_has_scores_beside_both_baselines_and_a_sample_of_each_type(finished: Run) -> None:
    text = printed(finished)
    assert re.search(r"type +model +unigram +bigram +tokens", text)
    assert re.search(r"cn +4\.000 \(54\.6\) +6\.500 \(665\.1\) +5\.500 \(244\.7\) +12\.3k", text)
    assert all(re.search(rf"^{type_} +4\.\d00", text, re.MULTILINE) for type_ in ("cn", "en", "code"))
    assert "却说曹操引军回许都" in text and "吾得孔明" not in text
    assert "returns a <b>list</b> of `pairs`." in text
    assert str(report_path(finished.plan, finished.store)) in text
    assert finished.refs["model"].uri in text
    assert f"evo ui --root {finished.store.root}" in text


def test_the_html_report_holds_everything_and_loads_nothing(finished: Run) -> None:
    path = write_report(finished.plan, finished.refs, finished.store)
    page = path.read_text(encoding="utf-8")
    for step in finished.plan.steps:
        assert step.key[:12] in page
        assert str(finished.store.artifact(step.name, step.key).path) in page
    assert page.count("<svg") == 6  # two models: loss, learning rate, gradient norm
    assert "training loss" in page and "665.1" in page and "吾得孔明" in page
    assert "returns a &lt;b&gt;list&lt;/b&gt;" in page
    assert "torch" in page and finished.plan.run_id in page
    assert all(address.startswith(("file://", "#")) for address in Addresses(page).found)


def test_the_newest_report_is_found_in_the_root(finished: Run) -> None:
    path = write_report(finished.plan, finished.refs, finished.store)
    link = finished.store.root / "report.html"
    assert link.resolve() == path
    assert not list(finished.store.root.glob(".report*")) and not list(path.parent.glob("*.tmp"))


def test_a_run_that_made_nothing_has_a_report_too(small: Small) -> None:
    plan = small.plan()
    page = write_report(plan, {}, small.store, error="step raw: the disk is <full>").read_text()
    assert "not complete" in page and "the disk is &lt;full&gt;" in page and "never made before" in page
    console = Console(width=100)
    with console.capture() as capture:
        print_report(plan, {}, small.store, console)
    assert "0 steps made" in capture.get()


@pytest.mark.ui
def test_the_html_report_is_readable_in_light_dark_and_narrow(finished: Run, tmp_path: Path) -> None:
    path = write_report(finished.plan, finished.refs, finished.store)
    with open_browser() as browser:
        paper = {}
        for scheme in ("light", "dark"):
            page = browser.open(f"file://{path}", color_scheme=scheme)
            paper[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert colours(page.screenshot(full_page=True)) > 200
            assert page.locator("svg").first.bounding_box()["width"] > 600
        assert paper["light"] != paper["dark"]
        page = browser.open(f"file://{path}", viewport={"width": 420, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        assert browser.hosts == set()
