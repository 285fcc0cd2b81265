"""The HTTP interface, with a stub in place of the detector."""

from __future__ import annotations

import asyncio
import io
import re
import struct
import threading
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

import httpx
import pytest
from PIL import Image

from fcos_fast.serve.app import make_app, reply_type
from fcos_fast.serve.batching import Batcher
from fcos_fast.serve.metrics import Metrics
from fcos_fast.serve.options import ServeOptions


@dataclass
class Found:
    """Detections of an image: one object whose box is the image's gray value."""

    gray: int

    def to_dict(self):
        return [
            {"class": name, "label": i, "score": 0.9, "box": [self.gray] * 4}
            for i, name in enumerate(["cat", "dog"])
        ]


class Stub:
    """A detector that waits while ``gate`` is closed and fails on black images."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.thresholds: list[float] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def predict(self, images, score_threshold, batch_size):
        assert batch_size == len(images)
        grays = [int(image.max()) for image in images]
        self.batches.append(grays)
        self.thresholds.append(score_threshold)
        self.started.set()
        assert self.gate.wait(20)
        if 0 in grays:
            raise RuntimeError("out of memory")
        return [Found(gray) for gray in grays]


@contextmanager
def stubbed(**options):
    """The stub and its application."""
    stub, metrics = Stub(), Metrics()
    settings = ServeOptions(checkpoint="stub.pt", **options)
    batcher = Batcher(stub.predict, settings, metrics)
    try:
        yield stub, make_app(batcher, ["cat", "dog"], settings, metrics)
    finally:
        stub.gate.set()
        batcher.close()


def ask(app, *requests: httpx.Request | dict) -> list[httpx.Response]:
    """Send requests at the same time."""

    async def send_all():
        async with client_of(app) as client:
            return await asyncio.gather(*(client.request(**request) for request in requests))

    return asyncio.run(send_all())


def client_of(app) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=30)


def upload(*files: bytes, **query) -> dict:
    """A request with the files in a form."""
    form = [("images", (f"{i}.png", data)) for i, data in enumerate(files)]
    return {"method": "POST", "url": "/detect", "files": form, "params": query}


def image(gray: int = 100, size=(20, 10), format="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, gray).save(file, format, **options)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file whose header announces a size, and which has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_images_in_a_form():
    with stubbed() as (_, app):
        (answer,) = ask(app, upload(image(1), image(2, (30, 40))))
    assert answer.status_code == 200
    first, second = answer.json()["images"]
    assert (first["name"], first["width"], first["height"]) == ("0.png", 20, 10)
    assert (second["name"], second["width"], second["height"]) == ("1.png", 30, 40)
    assert first["detections"][0] == {"class": "cat", "label": 0, "score": 0.9, "box": [1] * 4}
    assert second["detections"][0]["box"] == [2] * 4


def test_an_image_as_the_body_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = image(7, (20, 10), "JPEG", exif=exif)
    with stubbed() as (_, app):
        request = {
            "method": "POST",
            "url": "/detect",
            "content": photo,
            "headers": {"content-type": "image/jpeg"},
        }
        (answer,) = ask(app, request)
    (found,) = answer.json()["images"]
    assert (found["width"], found["height"]) == (10, 20)


def test_only_equal_sizes_and_thresholds_share_a_batch():
    with stubbed(max_batch=8, max_wait_ms=2000) as (stub, app):
        same = [upload(image(i)) for i in (1, 2, 3, 4, 5)]
        answers = ask(
            app, *same, upload(image(6, (30, 10))), upload(image(7), score_threshold=0.5), upload(image(8))
        )
    assert sorted(map(sorted, stub.batches)) == [[1, 2, 3, 4, 5, 8], [6], [7]]
    assert sorted(stub.thresholds) == [0.3, 0.3, 0.5]
    got = [answer.json()["images"][0]["detections"][0]["box"][0] for answer in answers]
    assert got == [1, 2, 3, 4, 5, 6, 7, 8]  # everyone got the own result


def test_classes_filter():
    with stubbed() as (_, app):
        (answer,) = ask(app, upload(image(), classes=["dog"]))
    assert [found["class"] for found in answer.json()["images"][0]["detections"]] == ["dog"]


def test_a_full_queue_is_reported_at_once():
    async def fill(app, stub):
        async with client_of(app) as client:
            stub.gate.clear()
            waiting = [asyncio.create_task(client.request(**upload(image()))) for _ in range(3)]
            while not stub.started.is_set():
                await asyncio.sleep(0.01)
            rejected = await client.request(**upload(image()))
            two = await client.request(**upload(image(), image()))
            stub.gate.set()
            return rejected, two, await asyncio.gather(*waiting), await client.request(**upload(image()))

    with stubbed(max_queue=3) as (stub, app):
        rejected, two, accepted, later = asyncio.run(fill(app, stub))
    assert rejected.status_code == two.status_code == 503
    assert rejected.headers["retry-after"] == "1"
    assert "3 images" in rejected.json()["detail"]
    assert [answer.status_code for answer in (*accepted, later)] == [200] * 4


def test_a_request_that_waits_too_long():
    with stubbed(timeout=0.3, max_batch=1) as (stub, app):
        stub.gate.clear()
        answers = ask(app, upload(image(1)), upload(image(2)))
        assert [answer.status_code for answer in answers] == [504, 504]
        assert answers[0].json()["detail"] == "not finished within 0.3 s"
        stub.gate.set()
        (later,) = ask(app, upload(image(3)))
    assert later.status_code == 200
    assert len(stub.batches) == 2  # nobody waits for one of the first two, so it is skipped


def test_a_crash_ends_one_batch(caplog):
    with stubbed(max_wait_ms=200) as (stub, app):
        black, beside, other = ask(app, upload(image(0)), upload(image(9)), upload(image(8, (9, 9))))
        (later,) = ask(app, upload(image(1)))
        health = ask(app, {"method": "GET", "url": "/health"})[0]
    assert sorted(stub.batches[0]) == [0, 9]
    assert black.status_code == beside.status_code == 500
    assert "log" in black.json()["detail"]
    assert "out of memory" in caplog.text
    assert other.status_code == later.status_code == 200
    assert health.json()["ready"]


BAD = {
    "empty": (b"", 422, "empty"),
    "text": (b"hello" * 100, 415, "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not an image"),
    "truncated jpeg": (image(size=(200, 200), format="JPEG")[:400], 422, "truncated"),
    "truncated png": (image(size=(200, 200))[:60], 422, "truncated"),
    "no pixels": (png_of_size(20, 10), 422, "cannot be decoded"),
    "too large": (png_of_size(3000, 400), 413, "3000x400"),
    "decompression bomb": (png_of_size(50_000, 50_000), 413, "pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_input_that_is_no_image(name):
    data, status, reason = BAD[name]
    with stubbed(max_pixels=1_000_000) as (stub, app):
        (answer,) = ask(app, upload(data))
    assert (answer.status_code, stub.batches) == (status, [])
    assert reason in answer.json()["detail"]


def test_bad_input_does_not_harm_good_input():
    with stubbed(max_pixels=1_000_000) as (_, app):
        bad = [upload(data) for data, _, _ in BAD.values()]
        good = [upload(image(i)) for i in range(1, 9)]
        answers = ask(app, *(request for pair in zip(bad, good, strict=True) for request in pair))
        (mixed,) = ask(app, upload(image(1), b"text", image(2)))
    assert [answer.status_code for answer in answers[::2]] == [status for _, status, _ in BAD.values()]
    assert [answer.json()["images"][0]["detections"][0]["box"][0] for answer in answers[1::2]] == [
        *range(1, 9)
    ]
    first, second, third = mixed.json()["images"]
    assert (first["detections"][0]["box"][0], third["detections"][0]["box"][0]) == (1, 2)
    assert set(second) == {"name", "error"}
    assert "not an image" in second["error"]


def test_a_body_that_is_too_large():
    async def in_pieces():
        for _ in range(30):
            yield b"x" * 100

    async def unread():
        raise AssertionError("a body that is known to be too large was read")
        yield

    post = {"method": "POST", "url": "/detect"}
    as_png = {"content-type": "image/png"}
    with stubbed(max_bytes=2000) as (_, app):
        known, unknown, small = ask(
            app,
            {**post, "content": unread(), "headers": {**as_png, "content-length": "2001"}},
            {**post, "content": in_pieces(), "headers": as_png},
            {**post, "content": b"x" * 2000, "headers": as_png},
        )
    assert (known.status_code, unknown.status_code, small.status_code) == (413, 413, 415)
    assert "2,000 bytes" in known.json()["detail"]


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=a"])
def test_a_client_that_disconnects_is_no_error_of_the_server(content_type):
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    request = httpx.Request("POST", "http://server/detect", headers={"content-type": content_type})
    scope = {"type": "http", "method": "POST", "path": "/detect", "query_string": b"", "http_version": "1.1"}
    with stubbed() as (stub, app):
        asyncio.run(app({**scope, "headers": request.headers.raw}, receive, send))
    assert (sent[0]["status"], stub.batches) == (499, [])


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "'text/plain'"),
        ({"content": b"x"}, 415, "multipart/form-data"),
        ({"files": {"a": (None, "1")}}, 422, "?a="),
        ({"files": {"a": ("a", image())}, "params": {"score_threshold": "2"}}, 422, "score_threshold='2'"),
        ({"files": {"a": ("a", image())}, "params": {"score_threshold": "nan"}}, 422, "score_threshold"),
        ({"files": {"a": ("a", image())}, "params": {"classes": "doc"}}, 422, "did you mean 'dog'"),
        ({"files": {"a": ("a", image())}, "params": {"format": "gif"}}, 422, "format='gif'"),
        ({"files": [("a", ("a", image()))] * 2, "params": {"format": "image"}}, 422, "2 images"),
        ({"files": [("a", ("a", image()))] * 5}, 400, "Maximum number of files is 4"),
    ],
)
def test_requests_that_are_wrong(request_, status, reason):
    with stubbed(max_queue=4) as (stub, app):
        (answer,) = ask(app, {"method": "POST", "url": "/detect", **request_})
    assert (answer.status_code, stub.batches) == (status, [])
    assert reason in answer.json()["detail"]


@pytest.mark.parametrize(
    ("format", "accept", "expected"),
    [
        (None, "", "application/json"),
        (None, "*/*", "application/json"),
        (None, "image/jpeg", "image/jpeg"),
        (None, "text/html, image/png;q=0.9, application/json", "image/png"),
        (None, "application/json, image/png", "application/json"),
        ("image", "*/*", "image/png"),
        ("image", "application/json, image/jpeg", "image/jpeg"),
        ("json", "image/png", "application/json"),
    ],
)
def test_reply_type(format, accept, expected):
    assert reply_type(format, accept) == expected


def test_health_and_metrics():
    get = {"method": "GET"}
    with stubbed() as (_, app):
        ask(app, upload(image()), upload(b"text"), upload(image(), score_threshold=9))
        health, metrics = ask(app, {**get, "url": "/health"}, {**get, "url": "/metrics"})
    (stopped,) = ask(app, {**get, "url": "/health"})
    about = health.json()
    assert about["ready"]
    assert (about["model"], about["classes"]) == ("stub.pt", ["cat", "dog"])
    assert (stopped.status_code, stopped.json()["ready"]) == (503, False)
    for line in (
        'fcos_fast_requests_total{status="200"} 1.0',
        'fcos_fast_requests_total{status="415"} 1.0',
        'fcos_fast_requests_total{status="422"} 1.0',
        "fcos_fast_request_seconds_count 3.0",
        "fcos_fast_batch_images_sum 1.0",
        "fcos_fast_images_total 1.0",
        "fcos_fast_queue_images 0.0",
    ):
        assert re.search(rf"^{re.escape(line)}$", metrics.text, re.MULTILINE), line


def test_the_page_is_one_file():
    text = resources.files("fcos_fast.serve").joinpath("page.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|@import|url\(", text)
    with stubbed() as (_, app):
        (answer,) = ask(app, {"method": "GET", "url": "/"})
    assert answer.text == text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
