"""The page, in a real browser: chatting, comparing two settings, and that it asks nobody else for anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, colours
from tests.serve.conftest import Served

pytestmark = pytest.mark.ui


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Any]:
    opened = browser.open(server.url)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.get_by_text("small · trained on 2048 tokens").wait_for(timeout=20_000)
    yield opened
    opened.close()
    assert errors == []


def ask(page: Any, text: str) -> None:
    page.get_by_label("Prompt").fill(text)
    page.get_by_role("button", name="Send").click()


def done(page: Any) -> None:
    """Wait until the answer is complete."""
    page.locator("#stop:disabled").wait_for(timeout=30_000)


def test_a_conversation_remembers_what_was_said(page: Any, pictures: Path) -> None:
    left = page.get_by_label("Left")
    left.get_by_label("max tokens").fill("20")
    left.get_by_label("seed").fill("3")
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    for text in ("the cat", "a word"):
        ask(page, text)
        done(page)
    assert left.locator(".turn.user").all_inner_texts() == ["the cat", "a word"]
    answers = left.locator(".turn.assistant").all_text_contents()
    assert len(answers) == 2
    assert answers[0]
    assert [message["content"] for message in bodies[1]["messages"]] == ["the cat", answers[0], "a word"]
    assert "tokens/s" in left.locator(".figures").inner_text()
    assert colours(page.screenshot(path=pictures / "chat.png")) > 100
    page.get_by_role("button", name="Clear").click()
    assert left.locator(".turn").count() == 0


def test_two_settings_side_by_side(page: Any, pictures: Path) -> None:
    page.get_by_label("continue text").check()
    page.get_by_label("compare two settings").check()
    left, right = page.get_by_label("Left"), page.get_by_label("Right")
    assert not left.get_by_label("Dynamic NTK").is_checked()
    assert right.get_by_label("Dynamic NTK").is_checked()
    for side in (left, right):
        side.get_by_label("temperature").fill("0")
        side.get_by_label("max tokens").fill("30")
    ask(page, "the cat " * 1500)  # beyond the trained length of 2048
    done(page)
    texts = [side.locator(".turn.text").text_content() for side in (left, right)]
    assert all(text.startswith("the cat the cat") for text in texts)
    assert texts[0] != texts[1]
    right.get_by_label("Dynamic NTK").uncheck()
    ask(page, "the cat " * 1500)
    done(page)
    texts = [side.locator(".turn.text").last.text_content() for side in (left, right)]
    assert texts[0] == texts[1]
    assert colours(page.screenshot(path=pictures / "compare.png")) > 100


STOP_AS_SOON_AS_IT_CAN_BE = """() => {
    const button = document.getElementById("stop");
    const looking = setInterval(() => {
        if (!button.disabled) {
            clearInterval(looking);
            button.click();
        }
    }, 20);
}"""


def test_stopping_and_mistakes_are_shown(page: Any) -> None:
    left = page.get_by_label("Left")
    left.get_by_label("temperature").fill("0")
    left.get_by_label("max tokens").fill("40000")
    page.evaluate(STOP_AS_SOON_AS_IT_CAN_BE)  # from outside it may be too late on a busy machine
    ask(page, "word word word")  # of 2206 tokens, the likeliest ones
    done(page)
    assert "stopped" in left.locator(".figures").inner_text()
    left.get_by_label("max tokens").fill("60000")
    ask(page, "the")
    done(page)
    assert "this server takes 50000 tokens together" in left.locator(".turn.error").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_right_in_light_and_dark_and_on_a_phone(
    browser: Browser, server: Served, pictures: Path, scheme: str
) -> None:
    backgrounds = []
    for name, width, height in (("wide", 1280, 800), ("phone", 390, 800)):
        page = browser.open(server.url, viewport={"width": width, "height": height}, color_scheme=scheme)
        page.get_by_text("small · trained on").wait_for(timeout=20_000)
        page.get_by_label("compare two settings").check()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=pictures / f"{scheme}-{name}.png")
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    channel = int(backgrounds[0].split("(")[1].split(",")[0])
    assert channel > 200 if scheme == "light" else channel < 60
