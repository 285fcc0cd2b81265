"""Detections for many clients at once are those of single calls; a signal ends the server after the last answer."""

from __future__ import annotations

import io
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

import fcos_fast
from fcos_fast.cli.main import main
from fcos_fast.engine.checkpoint import load_checkpoint, save_checkpoint
from fcos_fast.export.check import difference
from fcos_fast.inference.engine import RawDetections
from fcos_fast.serve.batching import Batcher
from fcos_fast.serve.images import decode
from fcos_fast.serve.metrics import Metrics
from fcos_fast.serve.options import ServeOptions
from fcos_fast.serve.server import address, is_loopback, listen

SIZES = ((96, 64), (80, 64), (96, 64), (57, 91))
CLIENTS = 32
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def photos(images) -> list[bytes]:
    """One file per client, in four sizes."""
    files = []
    for i in range(CLIENTS):
        with Image.open(images[i % len(images)]) as photo:
            file = io.BytesIO()
            photo.rotate(5 * i).resize(SIZES[i % len(SIZES)]).save(file, "PNG")
            files.append(file.getvalue())
    return files


def assert_same(found, expected, max_detections: int) -> None:
    """Boxes within 1e-3 pixel and scores within 1e-5, in the order of the scores up to that difference."""
    raw = [
        RawDetections(*(np.asarray(x) for x in (side.boxes, side.scores, side.labels)))
        for side in (expected, found)
    ]
    assert difference(*raw, max_detections) is None


@pytest.mark.parametrize("batching", ["group", "pad"])
def test_batches_have_the_results_of_single_calls(checkpoint, tmp_path, photos, batching):
    saved = load_checkpoint(checkpoint)
    saved["model_config"]["batching"] = batching
    save_checkpoint(tmp_path / "model.pt", saved)
    detector = fcos_fast.load(tmp_path / "model.pt", device="cpu", precision="float32")
    decoded = [decode(photo, 10**6) for photo in photos]
    single = [detector.predict(image.pixels, 0.3) for image in decoded]

    options, metrics = ServeOptions(checkpoint="", max_wait_ms=1000, max_batch=CLIENTS), Metrics()
    batcher = Batcher(detector.predict, options, metrics)
    found = [future.result() for future in [batcher.submit(image, 0.3) for image in decoded]]
    batcher.close()

    assert all(len(detections) for detections in single)
    for detections, expected in zip(found, single, strict=True):
        assert_same(detections, expected, saved["model_config"]["max_detections"])
    assert "fcos_fast_batch_images_count 3.0" in metrics_text(metrics)  # one batch per size


def metrics_text(metrics: Metrics) -> str:
    from prometheus_client import generate_latest

    return generate_latest(metrics.registry).decode()


def test_a_server_with_32_clients(serve, checkpoint, photos):
    """JSON has rounded boxes: two digits."""
    detector = fcos_fast.load(checkpoint, device="cpu")
    single = [detector.predict(decode(photo, 10**6).pixels, 0.3) for photo in photos]
    with serve("--checkpoint", str(checkpoint), "--device", "cpu", "--max_wait_ms", "300") as server:
        assert server.first_line.rstrip().endswith(
            f"serves {checkpoint}: {', '.join(detector.categories.names)}"
        )
        together = threading.Barrier(CLIENTS)

        def ask(photo: bytes) -> tuple[dict, int]:
            with httpx.Client(base_url=server.address, timeout=60) as client:
                together.wait()
                good = client.post("/detect", content=photo, headers=PNG)
                bad = client.post("/detect", content=photo[:200], headers=PNG)
                return good.json()["images"][0]["detections"], bad.status_code

        with ThreadPoolExecutor(CLIENTS) as clients:
            answers = list(clients.map(ask, photos))
        metrics = httpx.get(f"{server.address}/metrics").text
        drawn = httpx.post(
            f"{server.address}/detect?format=image&score_threshold=0.5",
            files={"images": photos[0]},
            headers={"accept": "image/jpeg"},
        )
        heavy = httpx.post(f"{server.address}/detect", content=bytes(40_000_000), headers=PNG, timeout=60)
        status, output, last = stopped_during_a_request(server, photos[0])

    for (rows, bad), expected in zip(answers, single, strict=True):
        assert bad == 422
        assert [row["label"] for row in rows] == list(expected.labels)
        boxes = np.array([row["box"] for row in rows])
        np.testing.assert_allclose(boxes, np.asarray(expected.boxes), rtol=0, atol=0.005 + 1e-3)
    batches = float(metrics.split("fcos_fast_batch_images_count ")[1].split()[0])
    assert batches < CLIENTS / 2  # more than one request per batch
    assert heavy.status_code == 413  # the client is told, although it is still sending
    assert drawn.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(drawn.content)).size == SIZES[0]
    assert last.status_code == 200
    assert len(last.json()["images"][0]["detections"]) == len(single[0])
    assert (status, output) == (0, "stopped\n")


def stopped_during_a_request(server, photo: bytes) -> tuple[int, str, httpx.Response]:
    """SIGTERM while an image waits for others to join its batch."""
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(httpx.post, f"{server.address}/detect", files={"images": photo}, timeout=60)
        time.sleep(0.15)
        return *server.stop(), answer.result()


def test_stopped_as_soon_as_it_is_ready(serve, checkpoint):
    """The line is printed when signals are handled, not before."""
    with serve("--checkpoint", str(checkpoint)) as server:
        assert server.stop() == (0, "stopped\n")


def test_answers_are_not_delayed():
    """With Nagle's algorithm, the body of an answer would wait 40 ms for the client's acknowledgment."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--checkpoint", "best.pt", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"fcos-fast serve: cannot listen on --host 127.0.0.1 --port {port}: Address already in use; "
        "--port 0 uses a free one\n"
    )


def test_a_checkpoint_that_does_not_exist(capsys):
    assert main(["serve", "--checkpoint", "missing.pt", "--port", "0"]) == 2
    assert "missing.pt" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_extra(module, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("fcos_fast.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["serve", "--checkpoint", "best.pt"]) == 2
    assert capsys.readouterr().err == (
        f"fcos-fast serve: needs {module}, which is not installed; pip install 'fcos_fast[serve]'\n"
    )


@pytest.mark.parametrize(
    "option", [["--port", "65536"], ["--max_batch", "0"], ["--timeout", "0"], ["--max_wait_ms", "-1"]]
)
def test_options_out_of_range(option, capsys):
    assert main(["serve", "--checkpoint", "best.pt", *option]) == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)]
)
def test_only_loopback_is_private(host, loopback):
    assert is_loopback(host) == loopback


def test_the_address_of_an_ipv6_socket():
    try:
        listener = listen("::1", 0)
    except ValueError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert re.fullmatch(r"http://\[::1\]:\d+", address(listener))
