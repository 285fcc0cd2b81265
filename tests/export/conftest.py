from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="export needs the extra export")
pytest.importorskip("onnxscript", reason="export needs the extra export")
pytest.importorskip("onnxruntime", reason="export needs the extra export")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The images are too small for more."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint that loads: its backbone is a real one."""
    import torch

    from fcos_fast.data.synthetic import CATEGORIES as SHAPES
    from fcos_fast.engine.benchmark import make_talkative
    from fcos_fast.engine.checkpoint import describe_model, save_checkpoint
    from fcos_fast.models import build_detector
    from tests.export.models import photos, small_detector

    folder = tmp_path_factory.mktemp("run")
    config = small_detector("adelaidet-rt", num_classes=len(SHAPES)).config
    torch.manual_seed(0)
    image = torch.from_numpy(photos((96, 128))[0]).permute(2, 0, 1)
    model = make_talkative(build_detector(config), image, 200)
    state = {**describe_model(model, SHAPES), "model": model.state_dict()}
    save_checkpoint(folder / "best.pt", state)
    return folder / "best.pt"


@pytest.fixture(scope="session")
def images(checkpoint) -> Path:
    """A folder of images for the check."""
    from tests.export.models import save_photos

    folder = checkpoint.parent / "images"
    folder.mkdir()
    save_photos(folder, (96, 128), (120, 100))
    return folder


def export(checkpoint: Path, images: Path, suffix: str, *options: str) -> Path:
    """The file that the command line writes."""
    from fcos_fast.cli.main import main

    command = ["export", "--checkpoint", str(checkpoint), "--images", str(images), "--max_detections", "40"]
    assert main([*command, *options]) == 0
    return checkpoint.with_suffix(suffix)


@pytest.fixture(scope="session")
def exported(checkpoint, images) -> Path:
    """The ONNX file."""
    return export(checkpoint, images, ".onnx")


@pytest.fixture(scope="session")
def program(checkpoint, images) -> Path:
    """The file of ``torch.export``."""
    return export(checkpoint, images, ".pt2", "--format", "torch-export")
