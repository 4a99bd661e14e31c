"""Debian's chromium, driven by playwright, and what can be said of a picture it took."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = Path("/usr/bin/chromium")


def require_chromium() -> None:
    """Skip the test where there is no chromium; fail where services are required."""
    if not CHROMIUM.exists():
        reason = f"no {CHROMIUM}; run: sudo make services"
        if os.environ.get("EVO_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


class Browser:
    """A browser that remembers which hosts its pages asked for anything."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self._shared = chromium.new_context(viewport={"width": 1280, "height": 900})
        self.hosts: set[str] = set()

    def open(self, url: str, **options: Any) -> Any:
        """A new page at `url`. With options (playwright's: viewport, color_scheme) it has a cache of its own."""
        page = self._chromium.new_page(**options) if options else self._shared.new_page()
        page.on("request", lambda request: self._remember(request.url))
        page.goto(url)
        return page

    def _remember(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob", "file"):
            self.hosts.add(parts.hostname or url)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser for the block."""
    require_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        try:
            yield Browser(chromium)
        finally:
            chromium.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser whose pages ask nobody but this machine."""
    with open_browser() as opened:
        yield opened
        assert opened.hosts == {"127.0.0.1"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: EVO_SCREENSHOTS keeps them."""
    folder = Path(os.environ.get("EVO_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def colours(png: bytes) -> int:
    """How many different colours a screenshot has: one or two for a blank page, thousands for one with text."""
    import numpy
    from PIL import Image

    pixels = numpy.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    return len(numpy.unique(pixels.view(numpy.uint32)))
