import pytest

pytest.importorskip("onnx", reason="export needs the extra export")
pytest.importorskip("onnxscript", reason="export needs the extra export")
pytest.importorskip("onnxruntime", reason="export needs the extra export")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The images are too small for more."""
