"""Weights by name: downloaded once from a server of this machine, cached, checked, and an error without a network."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fcos_fast.models import build_backbone, downloads
from fcos_fast.models.downloads import OFFLINE, check_connection, default_weights, download, normalization

NAME = "MobileNet_V2_Weights.IMAGENET1K_V1"


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if not self.server.is_broken:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"100\r\nhalf")
        self.close_connection = True

    def log_message(self, *_):
        self.server.asked.append(self.command)


@pytest.fixture
def server(tmp_path):
    """Serves ``tmp_path / "server"``; ``asked`` lists the methods of all requests."""
    folder = tmp_path / "server"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        server.asked, server.folder, server.is_broken = [], folder, False
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def published(torchvision, server, tmp_path, monkeypatch):
    """Torchvision's weights of MobileNetV2 come from the server; returns the file there."""
    monkeypatch.delenv(OFFLINE)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    torch.save(build_backbone("mobilenet_v2").state_dict(), server.folder / "a.pth")
    digest = hashlib.sha256((server.folder / "a.pth").read_bytes()).hexdigest()
    file = (server.folder / "a.pth").rename(server.folder / f"mobilenet_v2-{digest[:8]}.pth")
    weights = torchvision.models.get_weight(NAME)
    monkeypatch.setattr(weights.value, "url", f"{server.address}/{file.name}")
    return file


def test_weights_are_downloaded_once(published, server, tmp_path):
    wanted = torch.load(published)
    for _ in range(2):
        found = download(NAME)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert server.asked == ["HEAD", "GET"]
    assert [f.name for f in (tmp_path / "cache/hub/checkpoints").iterdir()] == [published.name]


def test_a_damaged_file_in_the_cache_is_downloaded_again(published, server, tmp_path):
    download(NAME)
    cached = tmp_path / "cache/hub/checkpoints" / published.name
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    download(NAME)
    assert cached.read_bytes() == published.read_bytes()
    assert server.asked.count("GET") == 2


def test_a_damaged_download_is_rejected(published, tmp_path):
    published.write_bytes(published.read_bytes()[:-1] + b"x")
    with pytest.raises(ConnectionError, match=r"could not be downloaded \(invalid hash"):
        download(NAME)
    assert not list((tmp_path / "cache/hub/checkpoints").iterdir())


def test_a_download_that_breaks_off(published, server, tmp_path):
    """Between the parts of a message whose length is not known before."""
    server.is_broken = True
    with pytest.raises(ConnectionError, match=r"could not be downloaded \(.*then give the file"):
        download(NAME)
    assert not list((tmp_path / "cache/hub/checkpoints").iterdir())


def test_another_process_removes_the_damaged_file_first(published, server, tmp_path, monkeypatch):
    cached = tmp_path / "cache/hub/checkpoints" / published.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"damaged")
    monkeypatch.setattr(downloads, "_sha256", lambda path: path.unlink() or "")
    download(NAME)
    assert cached.read_bytes() == published.read_bytes()


def test_a_missing_file(published):
    published.unlink()
    with pytest.raises(
        ConnectionError, match=r"\(HTTP Error 404.*download http://127\S+\.pth, then give the file"
    ):
        download(NAME)


def test_a_server_that_does_not_answer(monkeypatch):
    """It accepts the connection and is silent, or there is none."""
    monkeypatch.delenv(OFFLINE)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth"
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1: (timed out|no answer)"):
            check_connection(url)
        assert time.monotonic() - start < 3
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1: .*Errno 111"):
        check_connection(url)


def test_a_name_server_that_does_not_answer(monkeypatch):
    monkeypatch.delenv(OFFLINE)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(20))
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"weights\.invalid: no answer"):
        check_connection("http://weights.invalid/a.pth")
    assert time.monotonic() - start < 3
    released.set()


def test_offline_by_choice(torchvision, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        download(NAME)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The cache of huggingface_hub with the weights of one model, as the hub stores them; returns the large file."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    constants = pytest.importorskip("huggingface_hub").constants
    safetensors = pytest.importorskip("safetensors.torch")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--timm--mobilenetv3_small_050.lamb_in1k"
    for folder in ("blobs", "refs", "snapshots/0"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text("0")
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    content = safetensors.save(state)
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (repository / "snapshots/0/model.safetensors").symlink_to(blob)
    return blob


def test_cached_weights_of_timm_need_no_network(hub):
    from safetensors.torch import load_file

    found = download("timm:mobilenetv3_small_050.lamb_in1k")
    assert all(torch.equal(found[key], value) for key, value in load_file(hub).items())


def test_a_damaged_file_of_timm(hub):
    hub.write_bytes(hub.read_bytes()[:-1] + b"x")
    with pytest.raises(ConnectionError, match=r"model\.safetensors was damaged and is removed"):
        download("timm:mobilenetv3_small_050")
    with pytest.raises(
        ConnectionError, match="is set.*https://huggingface.co/timm/mobilenetv3_small_050.lamb_in1k, then"
    ):
        download("timm:mobilenetv3_small_050")


def test_a_damaged_file_of_timm_is_downloaded_again(hub, monkeypatch):
    import huggingface_hub

    content = hub.read_bytes()
    hub.write_bytes(content[:-1] + b"x")

    def again(repository, filename):
        assert not hub.exists()
        hub.write_bytes(content)
        return huggingface_hub.try_to_load_from_cache(repository, filename)

    monkeypatch.setattr(downloads, "check_connection", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", again)
    assert download("timm:mobilenetv3_small_050")
    assert hub.read_bytes() == content


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("resnet18", "ResNet18_Weights.IMAGENET1K_V1"),
        ("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V2"),
        ("resnext101_64x4d", "ResNeXt101_64X4D_Weights.IMAGENET1K_V1"),
        ("dla34", "timm:dla34.in1k"),
        ("darknet19", None),
        ("timm:resnet18", "timm:resnet18.a1_in1k"),
        ("timm:resnet18.a2_in1k", "timm:resnet18.a2_in1k"),
        ("timm:resnet18d", "timm:resnet18d.ra2_in1k"),
        ("timm:test_resnet", None),
        ("of_my_own", None),
    ],
)
def test_default_weights(backbone, name, torchvision):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    if backbone == "timm:test_resnet":
        backbone = f"timm:{next(m for m in timm.list_models() if not timm.is_model_pretrained(m))}"
    assert default_weights(backbone) == name


def test_normalizations(torchvision):
    pytest.importorskip("timm", reason="timm is not installed")
    assert normalization("ResNet18_Weights.IMAGENET1K_V1") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalization("timm:tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)
