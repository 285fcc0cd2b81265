"""Everything that images come from."""

from __future__ import annotations

import io
import shutil
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_fast.data import DataError
from fcos_fast.inference import urls, video
from fcos_fast.inference.sources import Source, find_sources, read_frames
from fcos_fast.inference.urls import download
from tests.inference.engines import canvas
from tests.inference.media import turn, write_frames

IMAGE = canvas(48, 64, ("red", (10, 20, 30, 40)))


@pytest.fixture
def folder(tmp_path, file) -> Path:
    """Two images, a video and other files; a folder inside."""
    folder = tmp_path / "mine"
    (folder / "inner").mkdir(parents=True)
    for name in ("b.jpg", "a.JPEG", ".hidden.jpg", "._a.jpg", "inner/c.jpg", "[1].jpg"):
        shutil.copy(file, folder / name)
    write_frames(folder / "film.MP4", [IMAGE] * 2)
    (folder / "notes.txt").write_text("not an image")
    return folder


def names(sources, folder) -> list[str]:
    return [f"{found.kind} {Path(found.name).relative_to(folder)}" for found in sources]


def test_folder_pattern_and_list(folder):
    inside = ["image [1].jpg", "image a.JPEG", "image b.jpg", "video film.MP4"]
    assert names(find_sources(folder), folder) == inside
    assert names(find_sources(str(folder)), folder) == inside
    assert names(find_sources(f"{folder}/*"), folder) == inside
    assert names(find_sources(f"{folder}/?.*"), folder) == ["image a.JPEG", "image b.jpg"]
    assert names(find_sources(f"{folder}/**/*.jpg"), folder) == [
        "image [1].jpg",
        "image b.jpg",
        "image inner/c.jpg",
    ]
    assert names(find_sources(folder / "[1].jpg"), folder) == ["image [1].jpg"]  # a file, not a pattern
    assert names(find_sources([folder / "b.jpg", [folder / "film.MP4"]]), folder) == [inside[2], inside[3]]
    assert names(find_sources(iter([folder])), folder) == inside


def test_images_in_memory():
    found = [*find_sources([IMAGE, torch.zeros(3, 4, 4), Image.fromarray(IMAGE), b"x"])]
    assert [(source.kind, source.name) for source in found] == [("image", "")] * 4


def test_webcams_by_number():
    (found,) = find_sources(2)
    assert (found.kind, found.name) == ("webcam", "/dev/video2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.jpg", "nothing.jpg does not exist; name an image, a video, a folder or a pattern"),
        ("*.bmp", r"no image or video matches \*.bmp"),
        ("empty", r"empty contains no image or video \(.jpg, .*; give another folder"),
        ("https://localhost/a.jpg", "URLs are not read unless you allow it: allow_urls=True"),
        ("rtsp://localhost/a", "cannot read rtsp URLs; expected http"),
        ("file:///etc/hostname", "cannot read file URLs"),
    ],
)
def test_what_does_not_exist_is_named_at_once(tmp_path, monkeypatch, colors, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        colors.stream([IMAGE, name])  # before the first detections


def test_one_image_gives_detections_and_several_give_a_list(colors, folder, tmp_path):
    for one in (folder / "b.jpg", str(folder / "[1].jpg"), (folder / "b.jpg").read_bytes(), IMAGE):
        assert colors.predict(one).image.shape[2] == 3
    for several in ([IMAGE], folder / "film.MP4", f"{folder}/b*", folder):
        assert isinstance(colors.predict(several), list)
    assert len(colors.predict(folder)) == 3 + 2
    with pytest.raises(ValueError, match=r"a webcam never ends, so predict cannot return; use stream"):
        colors.predict(0)
    with pytest.raises(TypeError, match="got a bool"):
        colors.predict(True)
    with pytest.raises(ValueError, match="no other source can follow it"):
        colors.stream([0, IMAGE])


def test_detections_know_where_they_come_from(colors, folder):
    found = colors.predict([IMAGE, folder / "b.jpg", folder / "film.MP4"])
    assert [(d.source, d.frame) for d in found] == [
        ("", None),
        (str(folder / "b.jpg"), None),
        (str(folder / "film.MP4"), 0),
        (str(folder / "film.MP4"), 1),
    ]
    assert found[3].time == pytest.approx(1001 / 30000, abs=1e-4)


def test_frames_of_a_video_in_batches(colors, tmp_path):
    """A red box moves by 4 pixels per frame."""
    boxes = [(10 + 4 * i, 20, 42 + 4 * i, 40) for i in range(11)]
    film = write_frames(tmp_path / "film.mp4", (canvas(64, 96, ("red", box)) for box in boxes))
    found = list(colors.stream(film, batch_size=4))
    assert colors.engine.batches == [4, 4, 3]
    assert [d.frame for d in found] == list(range(11))
    for detections, box in zip(found, boxes, strict=True):
        assert detections.names == ("red",)
        np.testing.assert_allclose(detections.boxes[0], box, atol=1)
        assert detections.image.shape == (64, 96, 3)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_frames_are_turned_as_the_file_says(colors, tmp_path, matrix):
    film = write_frames(tmp_path / "film.mp4", [canvas(64, 96, ("red", (8, 16, 40, 32)))] * 2)
    if matrix != (1, 0, 0, 1):
        turn(film, *matrix)
    a, b, c, d = matrix
    corners = [(a * x + c * y, b * x + d * y) for x, y in ((0, 0), (96, 64), (8, 16), (40, 32))]
    left, top = (min(corners[0][i], corners[1][i]) for i in (0, 1))
    xs, ys = (sorted(corner[i] for corner in corners[2:]) for i in (0, 1))
    found = next(colors.stream(film))
    assert found.image.shape[:2] == ((64, 96) if b == 0 else (96, 64))
    np.testing.assert_allclose(found.boxes[0], (xs[0] - left, ys[0] - top, xs[1] - left, ys[1] - top), atol=1)


def test_damaged_videos_are_named(colors, tmp_path):
    film = write_frames(tmp_path / "film.mp4", [IMAGE] * 5)
    content = film.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.mp4").write_text("not a video")
    for name in ("cut.mp4", "text.mp4"):
        with pytest.raises(
            DataError, match=rf"{name}: (cannot be read|has no video).*; replace or remove it"
        ):
            colors.predict(tmp_path / name)
    with pytest.raises(DataError, match="has 64x48 pixels per frame, more than 3071; raise max_pixels"):
        colors.predict(film, max_pixels=3071)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(DataError, match=r"folder.mp4 contains no image"):
        colors.predict(tmp_path / "folder.mp4")
    with pytest.raises(DataError, match=r"/dev/video77: cannot be read \(No such file or directory\)"):
        list(colors.stream(77))


def test_damage_inside_a_video_is_an_error_after_the_frames_before_it(colors, tmp_path):
    av = pytest.importorskip("av")
    film = write_frames(tmp_path / "film.avi", [IMAGE] * 30, codec="mjpeg")
    with av.open(str(film)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
    content = bytearray(film.read_bytes())
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    film.write_bytes(content)
    seen = []
    with pytest.raises(DataError, match=r"film.avi: frame \d+ cannot be decoded \(Invalid data found"):
        seen.extend(colors.stream(film))
    assert [d.frame for d in seen] == list(range(len(seen)))
    assert 10 < len(seen) <= 20


def test_sound_without_images_is_named(colors, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp")  # stereo
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound.mp4: has no video stream"):
        colors.predict(tmp_path / "sound.mp4")


def test_an_unreadable_file_is_an_error_or_reported_and_skipped(colors, folder):
    (folder / "aa.jpg").write_bytes(b"not a jpeg")
    seen = []
    with pytest.raises(DataError, match=r"aa\.jpg: is not an image"):
        seen.extend(colors.stream(folder, batch_size=8))
    assert [Path(d.source).name for d in seen] == ["[1].jpg", "a.JPEG"]  # what came before it
    with pytest.raises(DataError, match=r"aa\.jpg"):
        colors.predict(folder / "aa.jpg", on_error=seen.append)  # it has no other result
    errors = []
    assert len(list(colors.stream(folder, on_error=errors.append))) == 5
    assert [str(error) for error in errors] == [f"{folder / 'aa.jpg'}: is not an image; replace or remove it"]


def test_a_webcam_drops_frames_that_come_too_fast(colors, monkeypatch):
    """FFmpeg's generated images, 100 per second, stand for a camera."""
    pytest.importorskip("av")
    monkeypatch.setattr(video, "WEBCAM_FORMAT", "lavfi")
    monkeypatch.setattr(Source, "name", "testsrc=size=64x48:rate=100,realtime")
    numbers = []
    with closing(colors.stream(0, batch_size=8)) as stream:
        for found in stream:
            numbers.append(found.frame)
            time.sleep(0.05)
            if len(numbers) == 8:
                break
    assert colors.engine.batches == [1] * 8  # nothing waits for a batch
    assert numbers == sorted(set(numbers))
    assert numbers[-1] > 20


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing.png":
            self.send_error(404)
            return
        if self.path == "/rude.png":
            self.wfile.write(b"no HTTP\r\n\r\n")
            return
        self.send_response(200)
        if self.path == "/short.png":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        if self.path == "/slow.png":
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.02)
        elif self.path == "/endless.png":
            for _ in range(100):
                self.wfile.write(bytes(1 << 16))
        else:
            content = io.BytesIO()
            Image.fromarray(IMAGE).save(content, "PNG")
            self.wfile.write(content.getvalue() if self.path == "/a.png" else b"<html>")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls_if_they_are_allowed(colors, server):
    found = colors.predict(f"{server}/a.png", allow_urls=True)
    assert found.source == f"{server}/a.png"
    assert np.array_equal(found.image, IMAGE)
    with pytest.raises(DataError, match="not read unless you allow it"):
        colors.predict(f"{server}/a.png")
    with pytest.raises(DataError, match=r"/page: is not an image"):
        colors.predict(f"{server}/page", allow_urls=True)
    with pytest.raises(DataError, match=r"missing.png: cannot be downloaded \(HTTP Error 404"):
        colors.predict(f"{server}/missing.png", allow_urls=True)
    with pytest.raises(DataError, match=r"short.png: ended after 6 of 1000 bytes"):
        colors.predict(f"{server}/short.png", allow_urls=True)
    with pytest.raises(DataError, match=r"rude.png: cannot be downloaded \(no HTTP"):
        colors.predict(f"{server}/rude.png", allow_urls=True)
    for url in ("http://[1/a.png", "http://127.0.0.1:9/a b\n.png", "https://"):
        with pytest.raises(DataError, match="cannot be downloaded"):
            colors.predict(url, allow_urls=True)
    with pytest.raises(DataError, match=r"a.png: has 64x48 = 3072 pixels, more than 100"):
        colors.predict(f"{server}/a.png", allow_urls=True, max_pixels=100)
    assert len(list(read_frames(find_sources([f"{server}/a.png"] * 2, True)))) == 2


def test_urls_have_limits(server):
    with pytest.raises(DataError, match=r"endless.png: is larger than 100000 bytes"):
        download(f"{server}/endless.png", max_bytes=100_000)
    with pytest.raises(DataError, match=r"slow.png: did not arrive in 0.1 s"):
        download(f"{server}/slow.png", timeout=0.1)
    with pytest.raises(DataError, match=r"cannot be downloaded \(.*Errno 111"):
        download("http://127.0.0.1:9/a.png")
    assert urls.MAX_BYTES == 2**26


def test_memory_is_flat_over_10000_frames():
    """Frames of 192 kB: if they were kept, they would need 2 GB."""
    import tracemalloc

    from fcos_fast.inference import Predictor, RawDetections
    from tests.inference.engines import ColorEngine

    class Nothing(ColorEngine):
        def detect(self, images):
            empty = RawDetections(
                np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
            )
            return [empty] * len(images)

    frames = (np.full((200, 320, 3), i % 256, np.uint8) for i in range(10_000))
    tracemalloc.start()
    try:
        for number, found in enumerate(Predictor(Nothing()).stream(frames, batch_size=8)):
            assert found.image[0, 0, 0] == number % 256
            if number == 100:
                tracemalloc.reset_peak()
        grown, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert number == 9999
    assert peak < 30 * 200 * 320 * 3  # two batches, what the thread holds, and the last
    assert grown < 1_000_000
