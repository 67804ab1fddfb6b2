"""From stored bytes to an image: the pixels that torchvision's own loader gives."""

from __future__ import annotations

import errno
import io
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from hapi.errors import ImageError

MAX_PIXELS = 89_478_485
"""Largest image that is decoded, in pixels (270 MB as RGB): where Pillow begins to warn of decompression bombs."""

_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
"""How the files begin that Pillow has Ghostscript draw."""


class Window(NamedTuple):
    """Where a part of a picture lies in it: the part's upper left corner, and the whole picture's size. Pixels."""

    left: int
    top: int
    width: int
    height: int


def picture_bytes(data: bytes) -> int:
    """Bytes of the RGB pixels that the header promises (width x height x 3); 0 for what is not an image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return 3 * image.width * image.height
    except MemoryError:
        raise
    except Exception:  # whatever is wrong with it, decoding says so
        return 0


def decode_image(data: bytes, *, window: Window | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB image, pixel for pixel what `torchvision.datasets.folder.pil_loader` makes of the same file.

    With a `window` the file holds a part of a picture, and the image is the whole of it, black where nothing is known.

    Raises ImageError with the reason for what is not an image, is cut off or damaged, or has too many pixels;
    MemoryError if memory is too short, which says nothing about the image.
    """
    if not data:
        raise ImageError("not an image: the object is empty.")
    if data.startswith(_POSTSCRIPT):
        raise ImageError("an EPS file is a program, and none is run. Store the picture as JPEG or PNG.")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(*image.size, max_pixels)
            image.load()
            rgb = image if image.mode == "RGB" else image.convert("RGB")  # which copies even what is RGB
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image in a known format (it begins with {data[:8].hex(' ')}).") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image refused: {error}") from error
    except Exception as error:  # Pillow's plugins raise any kind for damaged files, and its decoders for lack of memory
        if getattr(error, "errno", None) == errno.ENOMEM or "out of memory" in str(error).lower():
            raise MemoryError(f"decoding an image: {error}") from error
        raise ImageError(f"damaged image: {error}.") from error
    return rgb if window is None else _placed(rgb, window, max_pixels)


def _placed(part: Image.Image, window: Window, max_pixels: int) -> Image.Image:
    """The part at its place in an image of the whole's size."""
    _check_size(window.width, window.height, max_pixels)
    if not (0 <= window.left <= window.width - part.width and 0 <= window.top <= window.height - part.height):
        raise ImageError(f"a part of {part.width}x{part.height} pixels cannot lie at {tuple(window)} of its picture.")
    whole = Image.new("RGB", (window.width, window.height))
    whole.paste(part, (window.left, window.top))
    return whole


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"image of {width}x{height} pixels: more than the {max_pixels:,} that are decoded.")
