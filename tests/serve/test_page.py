"""The page in a real browser."""

from __future__ import annotations

import base64
import re
import shutil

import pytest
from PIL import Image

from fcos_fast.visualize import class_color
from tests.serve.conftest import serving

playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser; install fcos_fast[dev]")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; apt install chromium")

DROP = """async ([base64, name]) => {
    const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, { type: "image/jpeg" }));
    const at = { bubbles: true, cancelable: true, dataTransfer: data };
    document.querySelector("#drop").dispatchEvent(new DragEvent("dragenter", at));
    document.querySelector("#drop").dispatchEvent(new DragEvent("drop", at));
}"""
"""Drops a file onto the page, as a file manager does."""


@pytest.fixture(scope="module")
def server(checkpoint):
    limits = ["--max_pixels", "500000", "--max_bytes", "500000"]
    with serving("--checkpoint", str(checkpoint), "--device", "cpu", *limits) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(server, browser):
    """The page on a phone, in dark mode; fails on console errors and on requests to other servers."""
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme="dark")
    page = context.new_page()
    page.problems, page.requests = [], []
    page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(server.address)
    playwright.expect(page.locator("#about")).to_contain_text("Classes: circle")
    yield page
    context.close()


def posted(page) -> int:
    return sum("/detect" in url for url in page.requests)


def set_slider(page, value: float) -> None:
    page.get_by_label("Lowest score").fill(str(value))


def assert_fits(page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_upload_threshold_and_drop(page, server, images, tmp_path):
    page.set_input_files("#files", [images[0], images[1]])
    playwright.expect(page.locator("article")).to_have_count(2)
    first = page.locator("article").filter(has_text=images[0].name)
    summary = first.locator(".summary")
    playwright.expect(summary).to_contain_text("found:")
    size = first.locator("canvas").evaluate("canvas => [canvas.width, canvas.height]")
    assert size == [96, 64]

    set_slider(page, 0.05)
    everything = first.locator("li").count()
    drawn = first.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    scores = sorted(float(re.search(r"[\d.]+$", text)[0]) for text in first.locator("li").all_inner_texts())
    middle = round(scores[len(scores) // 2], 2)
    set_slider(page, middle)
    assert 0 < first.locator("li").count() < everything
    set_slider(page, 1)
    playwright.expect(page.locator("#value")).to_have_text("1.00")
    playwright.expect(summary).to_have_text("Nothing found with this score.")
    bare = first.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    assert bare != drawn
    assert posted(page) == 2  # the slider asks nothing

    wide, name = tmp_path / "wide.jpg", "dropped_" * 12 + ".jpg"
    Image.open(images[2]).resize((900, 300)).save(wide)
    page.evaluate(DROP, [base64.b64encode(wide.read_bytes()).decode(), name])
    playwright.expect(page.locator("article").first.locator(".summary")).to_contain_text("found")
    playwright.expect(page.locator("article h2").first).to_have_text(name)
    assert not page.locator("#drop.over").count()
    assert_fits(page)
    assert all(url.startswith((server.address, "data:")) for url in page.requests), page.requests
    assert page.problems == []


@pytest.mark.parametrize("label", [0, 1, 4])
def test_boxes_are_drawn_where_they_are(page, images, label):
    found = {"class": "circle", "label": label, "score": 0.9, "box": [20, 20, 60, 50]}
    answer = {"images": [{"name": "a", "width": 96, "height": 64, "detections": [found]}]}
    page.route("**/detect*", lambda route: route.fulfill(json=answer))
    page.set_input_files("#files", images[0])
    playwright.expect(page.locator("article li")).to_have_text("circle 0.90")
    border, inside = page.locator("canvas").evaluate(
        "canvas => [50, 35].map(y => [...canvas.getContext('2d').getImageData(40, y, 1, 1).data].slice(0, 3))"
    )
    assert border == pytest.approx(class_color(label), abs=2)  # the color of drawn images
    assert inside != pytest.approx(class_color(label), abs=40)


def test_errors_are_said_in_words(page, server, images, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("L", (1000, 1000)).save(tmp_path / "wide.png")
    (tmp_path / "heavy.jpg").write_bytes(bytes(600_000))
    for name, words in {
        "text.jpg": "Not processed: the file is not an image; send JPEG, PNG, WEBP, BMP, TIFF (status 415).",
        "wide.png": "the image has 1000x1000 pixels; at most 500,000 are accepted",
        "heavy.jpg": "The file has 0.6 MiB; the server accepts 0.5 MiB.",
    }.items():
        page.set_input_files("#files", tmp_path / name)
        playwright.expect(page.locator("article").first.locator(".error")).to_contain_text(words)
        playwright.expect(page.locator("#status")).to_contain_text(name)
    page.set_input_files("#files", images[0])  # and still works
    playwright.expect(page.locator("article").first.locator(".summary")).to_contain_text("found:")
    page.route("**/detect*", lambda route: route.abort())
    page.set_input_files("#files", images[0])
    playwright.expect(page.locator("article .error").first).to_contain_text("The server does not answer.")
    assert_fits(page)


def test_keyboard_and_dark_mode(page, images):
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background))) < 64
    page.emulate_media(color_scheme="light")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert min(map(int, re.findall(r"\d+", background))) > 192
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.evaluate("getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(images[0])
    playwright.expect(page.locator("article")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    playwright.expect(page.locator("#value")).to_have_text("0.31")
