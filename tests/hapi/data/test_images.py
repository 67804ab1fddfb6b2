"""Decoding gives torchvision's pixels, and a reason for every object that is no good image."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile
from torchvision.datasets.folder import pil_loader

from hapi.data import decode_image
from hapi.errors import ImageError


def encoded(mode: str, kind: str, size: tuple[int, int] = (37, 29), **options: object) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"),
        ("1", "PNG"), ("RGB", "BMP"), ("RGB", "PPM"), ("L", "PPM"), ("RGB", "TIFF"), ("RGBA", "WEBP"), ("P", "GIF"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # both warn
def test_gives_the_pixels_of_torchvision(tmp_path: Path, mode: str, kind: str) -> None:
    data = encoded(mode, kind)
    path = tmp_path / "image"
    path.write_bytes(data)
    image = decode_image(data)
    assert image.mode == "RGB"
    assert image.tobytes() == pil_loader(path).tobytes()


def test_gives_the_pixels_of_torchvision_on_real_photographs(shared_data: Path) -> None:
    for path in sorted((shared_data / "images" / "flowers5" / "tulip").iterdir())[:12]:
        assert decode_image(path.read_bytes()).tobytes() == pil_loader(path).tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"This is a text file.", "not an image in a known format .it begins with 54 68 69 73"),
        (encoded("RGB", "JPEG")[:-200], "truncated"),
        (encoded("RGB", "JPEG")[:40], "image"),
        (encoded("RGB", "PNG")[:-60], "image"),
        (encoded("RGB", "PNG").replace(b"IDAT", b"IDAX"), "image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "image"),
        (b"P6 1000000 1000000 255\n", "image"),
        (encoded("RGBA", "DDS")[:80] + bytes(4) + encoded("RGBA", "DDS")[84:], "damaged.*pixel format"),
    ],
)
def test_what_is_not_a_good_image_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(data)


def png_of(width: int, height: int) -> bytes:
    """The head of a picture that would fill the memory: a few bytes that claim many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 9_000), (50_000, 50_000), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"pixels|refused"):
        decode_image(png_of(*size))


def test_the_limit_on_pixels_can_be_lowered() -> None:
    data = encoded("RGB", "PNG", (100, 100))
    assert decode_image(data, max_pixels=10_000).size == (100, 100)
    with pytest.raises(ImageError, match="100x100 pixels: more than the 9,999"):
        decode_image(data, max_pixels=9_999)


@pytest.mark.parametrize(
    "said",
    [
        OSError("out of memory error when reading image file"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("Failed to decode frame 0: Out of memory"),
    ],
)
def test_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch, said: Exception) -> None:
    def short(*_: object, **__: object) -> None:
        raise said

    data = encoded("RGB", "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", short)
    with pytest.raises(MemoryError):
        decode_image(data)


@pytest.mark.parametrize("head", [b"", b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, 1000, 0, 0, 0, 0) + bytes(2)])
def test_no_picture_is_a_program_that_is_run(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """Pillow gives EPS files to Ghostscript where that is installed, whatever their names."""
    data = head + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%id) (r) file\n%%EOF\n"
    run: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: run.append(given))
    with pytest.raises(ImageError, match="EPS file is a program"):
        decode_image(data)
    assert not run
