"""A request's picture: read within limits of bytes and time, decoded within a limit of pixels.

Nothing is written to disk, and sizes that a client states are not trusted: bytes are counted as
they arrive, and a picture's pixels are read from its header before any of them is decoded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import anyio
import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from fassd.io.bands import examine_picture
from fassd.io.images import ImageError, TooManyPixelsError, formats, resized
from fassd.io.levels import Range
from fassd.io.untrusted import shown

if TYPE_CHECKING:
    from starlette.requests import Request

FORM_BYTES = 1 << 16
"""How much larger than its picture a form may be."""

ACCEPTED = "send multipart/form-data with one file named image, or a picture as image/*"


class RefusedError(Exception):
    """A request is refused; the message is for its client.

    Attributes:
        status: HTTP status code.
        message: text of one line.
        close: True if the connection cannot be used any more.
    """

    def __init__(self, status: int, message: str, *, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.close = close


async def read_upload(request: Request, max_bytes: int, seconds: float) -> bytes:
    """Read the file of a request, which is a form's only part, named image, or the body.

    Args:
        request: request whose body has not been read yet.
        max_bytes: maximum bytes of the file.
        seconds: time in which all of it must arrive.

    Raises:
        RefusedError: 400 malformed form; 408 too slow; 413 too large; 415 another content type.
        starlette.requests.ClientDisconnect: the client hung up.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not (is_form or kind.startswith("image/")):
        raise RefusedError(415, f"the content type {shown(kind)} is not accepted; {ACCEPTED}")
    limit = max_bytes + (FORM_BYTES if is_form else 0)
    too_large = RefusedError(413, f"the upload is larger than the limit of {max_bytes:,} bytes")
    pieces = _bounded(request, limit, too_large)
    try:
        with anyio.fail_after(seconds):
            if is_form:
                data = await _form_file(request, pieces, limit)
            else:
                data = b"".join([piece async for piece in pieces])
    except TimeoutError:
        message = f"the request was not complete after {seconds:g} s"
        raise RefusedError(408, message, close=True) from None
    if len(data) > max_bytes:
        raise too_large
    return data


async def _bounded(
    request: Request, limit: int, too_large: RefusedError
) -> AsyncGenerator[bytes, None]:
    """The body in pieces; an error as soon as it is longer than `limit`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    count = 0
    async for piece in request.stream():
        count += len(piece)
        if count > limit:
            raise too_large
        yield piece


async def _form_file(request: Request, pieces: AsyncGenerator[bytes, None], limit: int) -> bytes:
    parser = MultiPartParser(request.headers, pieces, max_files=1, max_fields=0, max_part_size=0)
    parser.spool_max_size = limit + 1  # larger parts would be written to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedError(400, f"the form cannot be read ({error.message}); {ACCEPTED}") from None
    file = form.get("image")
    if not isinstance(file, UploadFile):
        raise RefusedError(400, f"the form holds no file named image; {ACCEPTED}")
    try:
        return await file.read()
    finally:
        await file.close()


def decode(
    data: bytes,
    max_pixels: int,
    size: tuple[int, int] | None = None,
    range: Range = None,
    bands: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode a picture as `fassd.io.images` does: upright, opaque, 8 bits, the first of several; or
    one of bands as `fassd.io.bands` does.

    Args:
        data: content of the file.
        max_pixels: maximum of height times width, read from the file's header.
        size: (height, width) to resize to, bilinear and antialiased; None keeps the picture's.
        range: values that become 0 and 255, as `fassd.io.images.read_image` takes it.
        bands: required number of bands; None for three colours.

    Returns:
        (H, W, 3) uint8 RGB, or (H, W, bands).

    Raises:
        RefusedError: 400 empty or damaged, or of other bands; 413 too many pixels; 415 no picture
            of `formats()`.
    """
    if not data:
        raise RefusedError(400, "the picture is empty")
    try:
        picture = examine_picture(data, bands, range, max_pixels).pixels
    except ImportError as error:
        raise RefusedError(415, str(error)) from None
    except ImageError as error:  # what it says of decoders' own errors is not for clients
        cause = error.__cause__
        if isinstance(cause, MemoryError):
            raise cause from None
        if isinstance(cause, TooManyPixelsError):
            message = f"the picture has too many pixels; the limit is {max_pixels:,}"
            raise RefusedError(413, message) from None
        if isinstance(cause, UnidentifiedImageError):
            known = f"a picture of a known format; accepted: {', '.join(formats())}"
            raise RefusedError(415, f"the file is not {known}") from None
        if isinstance(cause, ImageError):
            raise RefusedError(400, f"the picture cannot be used: {cause}") from None
        raise RefusedError(400, "the picture is damaged or truncated") from None
    return resized(picture, size or picture.shape[:2])
