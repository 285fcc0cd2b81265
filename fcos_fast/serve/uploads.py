"""The files of a request."""

from __future__ import annotations

from typing import NamedTuple

import python_multipart  # noqa: F401  # Starlette reads forms with it, and would miss it only at the first form
from starlette.requests import Request
from starlette.types import Message

from fcos_fast.serve.images import UploadError
from fcos_fast.serve.options import ServeOptions


class Upload(NamedTuple):
    """A file that was sent."""

    name: str
    data: bytes


async def read_uploads(request: Request, options: ServeOptions) -> list[Upload]:
    """The files of a request: the parts of a form, or the body if that is an image.

    Raises:
        UploadError: the body is too large, neither a form nor an image, or contains no file.
    """
    request = limited(request, options.max_bytes)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type.startswith("image/"):
        return [Upload("image", await request.body())]
    if content_type != "multipart/form-data":
        raise UploadError(
            415,
            f"the content type is {content_type!r}; send a form (multipart/form-data) or an image (image/jpeg)",
        )
    async with request.form(max_files=options.max_queue) as form:
        uploads = []
        for name, file in form.multi_items():
            if isinstance(file, str):
                raise UploadError(
                    422, f"form field {name!r} is not a file; options are part of the URL: ?{name}="
                )
            uploads.append(Upload(file.filename or name, await file.read()))
    if not uploads:
        raise UploadError(422, "the form contains no file")
    return uploads


def limited(request: Request, max_bytes: int) -> Request:
    """The request; reading more than ``max_bytes`` of its body raises UploadError.

    The versions of FastAPI for Python 3.10 have no ``max_body_size``.
    """
    error = UploadError(413, f"the request is larger than {max_bytes:,} bytes; send smaller or fewer images")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise error
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise error
        return message

    return Request(request.scope, receive)
