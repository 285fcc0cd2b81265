"""The page of ``fcos-fast data check`` in a real browser."""

from __future__ import annotations

import re
import shutil

import pytest

from fcos_fast.cli.main import main
from tests.quality.conftest import SMALL, Photo, write

playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser; install fcos_fast[dev]")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; apt install chromium")

HOSTILE = "<script>document.title='run'</script>&$title"
LONG = "a" * 200 + ".jpg"


@pytest.fixture(scope="module")
def html(photos, tmp_path_factory):
    """The page of a dataset with faults, hostile and long names."""
    folder = tmp_path_factory.mktemp("page")
    photos = photos(30)
    photos[0] = photos[0].add(
        (HOSTILE, (10, 10, 50, 50)), (HOSTILE, (10, 10, 50, 50.5)), (HOSTILE, (1, 1, 4, 4))
    )
    photos[1] = Photo(LONG, photos[1].data, ())
    photos[2] = Photo("broken.jpg", b"no image", photos[2].boxes)
    val = [photos.pop() for _ in range(10)]
    val.append(Photo("leak.jpg", photos[5].data, photos[5].boxes))
    root = write(folder / "data <b>", "coco", {"train": photos, "val": val})
    page = folder / "check.html"
    assert main(["data", "check", "--data.root", str(root), *SMALL, "--output", str(page)]) == 1
    return page


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("scheme", "width"), [("dark", 360), ("light", 1200)])
def test_page(browser, html, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 640}, color_scheme=scheme)
    page, problems, requests = context.new_page(), [], []
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(html.as_uri())
    assert problems == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    assert page.title() == "Check of data <b>"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = sum(
        map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])
    )
    assert light < 150 if scheme == "dark" else light > 700

    assert HOSTILE in page.locator("main").inner_text()
    assert LONG in page.locator("#images_without_boxes").inner_text()
    pair = page.locator("#duplicates_across_splits img")
    assert pair.count() == 2
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.locator("nav a", has_text="also in train").click()
    assert page.url.endswith("#duplicates_across_splits")
    articles = page.locator("article").evaluate_all("all => all.map(one => one.className)")
    assert articles == sorted(articles, key=["error", "warning", "note"].index)
    assert page.locator("nav li").count() == len(articles)
    context.close()


def test_boxes_are_drawn(browser, html):
    """The repeated boxes are visible on their image."""
    page = browser.new_page()
    page.goto(html.as_uri())
    colors = page.locator("#repeated_boxes img").evaluate(
        """image => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return [[10, 30], [30, 50]].map(([x, y]) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3));
        }"""
    )
    for color in colors:  # the color of the first box, through JPEG
        assert color[2] > 150 > color[0] + 40, colors
    page.close()
