"""What a person sees: Prefect's pages of a finished run, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, colours
from tests.flows.orchestration.conftest import Api, Finished, settled
from tests.flows.orchestration.small import Small

pytestmark = pytest.mark.ui

LOOKS = 250
"""A page with text on it has more colours than this; an empty one has a handful."""


def look(browser: Browser, url: str, words: list[str], picture: Path) -> str:
    """Open a page, wait for its words, take its picture; gives its text."""
    page = browser.open(url)
    for word in words:
        page.get_by_text(word).first.wait_for(timeout=30_000)
    assert settled(lambda: colours(page.screenshot(path=picture)), lambda found: found > LOOKS) > LOOKS  # it fades in
    text = page.inner_text("body")
    page.close()
    return text


def test_the_page_of_the_run(browser: Browser, api: Api, finished: Finished, pictures: Path) -> None:
    url = f"{api.page}/runs/flow-run/{finished.run['id']}"
    text = look(browser, url, [finished.run["name"], "Completed", "tgs (tokens/gpu/second)"], pictures / "run.png")
    assert "5 Task runs" in text


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("small-scores-table", ["4.0000 (54.6)", "unigram: loss (perplexity)"]),
        ("small-samples", ["The function", "却说曹操"]),
        pytest.param("small-plan", ["never made before", "test.curve"], marks=pytest.mark.slow),
        pytest.param("small-model", ["steps 60 · tokens 30.7k", "test.curve"], marks=pytest.mark.slow),
        pytest.param("small-lineage", ["made from", "raw files"], marks=pytest.mark.slow),
    ],
)
def test_the_pages_of_its_artifacts(
    browser: Browser,
    api: Api,
    finished: Finished,
    pictures: Path,
    key: str,
    words: list[str],
) -> None:
    look(browser, f"{api.page}/artifacts/artifact/{finished.pages[key]['id']}", words, pictures / f"{key}.png")


def test_the_loss_curve_is_drawn_and_lineage_leads_to_it(browser: Browser, api: Api, finished: Finished) -> None:
    lineage = browser.open(f"{api.page}/artifacts/artifact/{finished.pages['small-lineage']['id']}")
    link = lineage.locator(f"a[href$='{finished.pages['small-model']['id']}']").first
    link.wait_for(timeout=30_000)
    card = browser.open(api.page + link.get_attribute("href"))
    curve = card.get_by_alt_text("training loss")
    curve.wait_for(timeout=30_000)
    assert curve.evaluate("image => image.naturalWidth") > 300
    assert settled(lambda: colours(curve.screenshot()), lambda found: found > LOOKS) > LOOKS  # the page fades in
    for page in (lineage, card):
        page.close()


def test_the_dashboard_opens_at_the_bare_address(browser: Browser, api: Api, pictures: Path, finished: object) -> None:
    look(browser, api.page, ["Flow Runs", "Task Runs"], pictures / "dashboard.png")


def test_a_failed_run_shows_its_step_and_cause(
    browser: Browser, api: Api, run_here: Callable[..., dict[str, Any]], small: Small, pictures: Path
) -> None:
    run = run_here(small, "vars.fail=true")
    look(
        browser,
        f"{api.page}/runs/flow-run/{run['id']}",
        [run["name"], "Failed", "step model: ", "other"],  # a step that does not need the failed one is there too
        pictures / "failed.png",
    )


def test_the_form_of_a_deployment(
    browser: Browser, api: Api, deployments: dict[str, dict[str, Any]], pictures: Path
) -> None:
    url = f"{api.page}/deployments/deployment/{deployments['pretrain/pretrain-7b']['id']}/run"
    words = ["Pipeline", "Overrides", "Targets", "Force", "KEY=VALUE over the file"]
    look(browser, url, words, pictures / "form.png")
