"""Pages in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def opened(path: Path, width: int, dark: bool) -> Iterator[Any]:
    """A file, opened without a network; fails on console errors and on requests for anything else."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="drives the browser; install fcos_fast[dev]"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH; apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 640}, color_scheme=scheme)
        page = context.new_page()
        problems, requests = [], []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert problems == []
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        browser.close()
