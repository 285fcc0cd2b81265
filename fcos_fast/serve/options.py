"""Options of ``fcos-fast serve``. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fcos_fast.fields import at_least, between, check_fields, checked, positive
from fcos_fast.precision import EngineName, Precision


@dataclass(frozen=True)
class ServeOptions:
    """Serve a detector over HTTP: a web page, detections as JSON, drawn images. Runs until Ctrl-C or SIGTERM.

      fcos-fast serve --checkpoint runs/train/best.pt

    Attributes:
        checkpoint: ``best.pt`` or ``last.pt`` of a run, a checkpoint that ``fcos-fast convert`` reads, or a file of
            ``fcos-fast export``.
        host: address to listen on; 0.0.0.0 lets other machines use the server, without a password.
        port: TCP port to listen on; 0 uses a free one, which is printed.
        threads: CPU threads of the detector; by default one per core.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``auto`` is bfloat16 on devices with fast bfloat16, otherwise float32.
        engine: ``torch``, ``onnxruntime`` or ``openvino``; ``auto``: the fastest that is installed. By default a
            checkpoint runs in torch, and an exported detector in the runtime of its format.
        max_batch: most images that the detector processes together.
        max_wait_ms: most milliseconds that an image waits for others to join its batch.
        max_queue: most images in the server at a time; further requests are answered at once with status 503.
        timeout: seconds after which a request is answered with status 504.
        max_bytes: requests with a larger body are answered with status 413.
        max_pixels: images with more pixels are rejected before they are decoded.
    """

    checkpoint: str
    host: str = "127.0.0.1"
    port: int = between(8000, 0, 65535)
    threads: int | None = checked(None, lambda n: n is None or n > 0, "a positive integer or None")
    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "default"
    max_batch: int = positive(8)
    max_wait_ms: float = at_least(5.0, 0)
    max_queue: int = positive(64)
    timeout: float = positive(30.0)
    max_bytes: int = positive(32 * 2**20)
    max_pixels: int = positive(50_000_000)

    def __post_init__(self) -> None:
        check_fields(self, "--")
