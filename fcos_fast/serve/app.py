"""The HTTP interface: ``/detect``, ``/health``, ``/metrics`` and the page ``/``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

import anyio
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

import fcos_fast
from fcos_fast.serve.batching import Batcher, DetectorError, QueueFullError, Slots
from fcos_fast.serve.images import Decoded, UploadError, decode, encode
from fcos_fast.serve.metrics import MeasureRequests, Metrics
from fcos_fast.serve.options import ServeOptions
from fcos_fast.serve.uploads import Upload, read_uploads
from fcos_fast.suggest import unknown_name
from fcos_fast.visualize import draw_boxes

T = TypeVar("T")

DECODERS = 4
"""Threads that decode uploads and encode drawn images."""

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
"""The page loads nothing from other servers; the browser enforces it."""

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""The body of ``/detect`` for ``/openapi.json``; FastAPI does not see it, because :func:`read_uploads` reads it."""


def make_app(batcher: Batcher, classes: Sequence[str], options: ServeOptions, metrics: Metrics) -> FastAPI:
    """The application for uvicorn.

    Args:
        batcher: the detector.
        classes: its class names.
        options: limits.
        metrics: shown by ``/metrics``.
    """
    app = FastAPI(title="fcos_fast", version=fcos_fast.__version__, docs_url=None, redoc_url=None)
    app.add_middleware(MeasureRequests, metrics=metrics)
    service = Service(batcher, classes, options)
    page = resources.files("fcos_fast.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.post("/detect", openapi_extra=BODY)
    async def detect(
        request: Request,
        score_threshold: Annotated[float, Query(ge=0, le=1)] = 0.3,
        classes: Annotated[list[str], Query()] = [],  # noqa: B006  # FastAPI copies it
        format: Literal["json", "image"] | None = None,
    ) -> Response:
        media_type = reply_type(format, request.headers.get("accept", ""))
        return await service.answer(request, score_threshold, classes, media_type)

    @app.get("/health")
    async def health() -> JSONResponse:
        ready = batcher.alive
        about = {
            "ready": ready,
            "version": fcos_fast.__version__,
            "model": PurePath(options.checkpoint).name,
            "classes": list(service.classes),
            "max_bytes": options.max_bytes,
            "max_pixels": options.max_pixels,
        }
        return JSONResponse(about, 200 if ready else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
        reasons = [f"{e['loc'][-1]}={e['input']!r}: {e['msg']}" for e in error.errors()]
        return JSONResponse({"detail": "; ".join(reasons)}, 422)

    return app


class Service:
    """Answers ``/detect``."""

    def __init__(self, batcher: Batcher, classes: Sequence[str], options: ServeOptions) -> None:
        self.batcher = batcher
        self.classes = tuple(classes)
        self.options = options
        self.slots = Slots(options.max_queue)
        self.threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")

    async def answer(
        self, request: Request, score_threshold: float, classes: Sequence[str], media_type: str
    ) -> Response:
        """Detect objects in the images of a request.

        Raises:
            HTTPException: the request cannot be answered; the status and the message say why.
        """
        if unknown := [name for name in classes if name not in self.classes]:
            raise HTTPException(422, str(unknown_name("class", unknown[0], self.classes)))
        try:
            with anyio.fail_after(self.options.timeout), self.slots.hold(1):
                uploads = await read_uploads(request, self.options)
                with self.slots.hold(len(uploads) - 1):
                    if media_type == "application/json":
                        return await self._json(uploads, score_threshold, classes)
                    return await self._drawn(uploads, score_threshold, classes, media_type)
        except QueueFullError:
            message = f"the server has {self.options.max_queue} images to process; try again later"
            raise HTTPException(503, message, {"Retry-After": "1"}) from None
        except TimeoutError:
            raise HTTPException(504, f"not finished within {self.options.timeout:g} s") from None
        except UploadError as error:
            raise HTTPException(error.status, str(error)) from None
        except ClientDisconnect:
            raise HTTPException(499, "the client disconnected") from None  # seen in the metrics only
        except DetectorError:
            raise HTTPException(500, "the detector failed on this batch; the server's log says why") from None

    async def _json(
        self, uploads: Sequence[Upload], score_threshold: float, classes: Sequence[str]
    ) -> JSONResponse:
        """One entry per upload. An unusable one has an error instead; if all are unusable, the first is raised."""
        results = await asyncio.gather(
            *(self._detect_or_error(upload, score_threshold) for upload in uploads)
        )
        errors = [result for result in results if isinstance(result, UploadError)]
        if len(errors) == len(results):
            raise errors[0]
        pairs = zip(uploads, results, strict=True)
        return JSONResponse({"images": [entry(upload.name, result, classes) for upload, result in pairs]})

    async def _drawn(
        self, uploads: Sequence[Upload], score_threshold: float, classes: Sequence[str], media_type: str
    ) -> Response:
        if len(uploads) != 1:
            raise UploadError(
                422, f"{len(uploads)} images were sent; a drawn image is the answer to one, JSON to several"
            )
        _, found = await self._detect(uploads[0], score_threshold)

        def draw() -> bytes:
            keep = of_classes(found.to_dict(), classes)
            shown = found.boxes[keep], found.labels[keep], self.classes, found.scores[keep]
            return encode(draw_boxes(found.image, *shown), media_type)

        return Response(await self._in_thread(draw), media_type=media_type)

    async def _detect_or_error(
        self, upload: Upload, score_threshold: float
    ) -> tuple[Decoded, Any] | UploadError:
        try:
            return await self._detect(upload, score_threshold)
        except UploadError as error:
            return error

    async def _detect(self, upload: Upload, score_threshold: float) -> tuple[Decoded, Any]:
        """The decoded image and its ``Detections``."""
        image = await self._in_thread(decode, upload.data, self.options.max_pixels)
        return image, await asyncio.wrap_future(self.batcher.submit(image, score_threshold))

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)


def entry(name: str, result: tuple[Decoded, Any] | UploadError, classes: Sequence[str]) -> dict[str, Any]:
    """The part of a JSON answer for one image."""
    if isinstance(result, UploadError):
        return {"name": name, "error": str(result)}
    image, detections = result
    rows = detections.to_dict()
    found = [rows[i] for i in of_classes(rows, classes)]
    return {"name": name, "width": image.width, "height": image.height, "detections": found}


def of_classes(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> list[int]:
    """Indices of the rows (``Detections.to_dict``) of one of ``classes``; of all rows if it is empty."""
    return [i for i, row in enumerate(rows) if not classes or row["class"] in classes]


def reply_type(format: str | None, accept: str) -> str:
    """The media type of the answer: JSON, or the type of the drawn image.

    ``format`` is that of the query. Without it, the first type of the Accept header that can be sent wins.
    """
    accepted = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    if format == "json":
        return "application/json"
    if format == "image":
        accepted = [kind for kind in accepted if kind.startswith("image/")] + ["image/*"]
    known = {"image/*": "image/png", "image/png": "image/png", "image/jpeg": "image/jpeg"}
    known |= {"application/json": "application/json", "*/*": "application/json"}
    return next((known[kind] for kind in accepted if kind in known), "application/json")
