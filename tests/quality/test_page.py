"""The page of ``fcos-fast data check`` in a real browser."""

from __future__ import annotations

import re

import pytest

from fcos_fast.cli.main import main
from tests.engine.browser import opened
from tests.quality.conftest import SMALL, Photo, write

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


@pytest.mark.parametrize(("dark", "width"), [(True, 360), (False, 1200)])
def test_page(html, dark, width):
    with opened(html, width, dark) as page:
        assert page.title() == "Check of data <b>"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", color)[:3]))
        assert light < 150 if dark else light > 700

        assert HOSTILE in page.locator("main").inner_text()
        assert LONG in section(page, "without boxes").inner_text()
        assert section(page, "to images of train").locator("img").count() == 2
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        page.locator("nav a", has_text="to images of train").click()
        assert (
            section(page, "to images of train").locator("h2").evaluate("h2 => '#' + h2.id === location.hash")
        )
        headings = page.locator("h2").all_inner_texts()
        severities = [heading.split(":")[0] for heading in headings]
        assert set(severities) == {"Error", "Warning", "Note"}
        assert severities == sorted(severities, key=["Error", "Warning", "Note"].index)
        assert page.locator("nav li").all_inner_texts() == headings


def section(page, text):
    return page.locator("section").filter(has=page.locator("h2", has_text=text))


def test_boxes_are_drawn(html):
    """The repeated boxes are visible on their image."""
    with opened(html, 1200, False) as page:
        colors = (
            section(page, "labeled twice")
            .locator("img")
            .evaluate(
                """image => {
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                const context = canvas.getContext("2d", { willReadFrequently: true });
                context.drawImage(image, 0, 0);
                return [[10, 30], [30, 50]].map(([x, y]) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3));
            }"""
            )
        )
    for color in colors:  # the color of the first box, compressed
        assert color[2] > 150 > color[0] + 40, colors
