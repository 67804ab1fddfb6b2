"""Stored JPEG pictures without the blocks that a transform never reads, losslessly: fewer bytes to send and to decode.

A JPEG is made of blocks of 8 pixels a side (16 or 32 where colours are coarser) that are coded one after the other.
libjpeg-turbo takes a rectangle of them out without decoding and coding anew, so all pixels that remain are what they
were; but for a few at the rectangle's edges, where colours are interpolated over neighbours, and these are kept apart
from what the transform reads. A damaged file that decodes without a warning, to values that no encoder makes, may
become another such file. The library is the system's own (Debian: libturbojpeg0); without it, nothing is trimmed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from contextlib import closing
from functools import cache

from hapi.data.images import MAX_PIXELS, Window
from hapi.data.transforms.parts import Box
from hapi.data.transforms.spec import TransformSpec

LEAST_SAVED = 0.05
"""Part of the bytes that must be saved; less is not worth the work at the other end."""
_EDGE = 4
"""Pixels of a part's edge that interpolated colours may have changed."""
_BLOCKS = ((8, 8), (16, 8), (16, 16), (8, 8), (8, 16), (32, 8), (8, 32))
"""Width and height of the blocks, by the library's number for how much coarser colours are."""
_COLOURS = frozenset({0, 1, 2})
"""The library's numbers for RGB, YCbCr and grey. Of others Pillow's reading depends on more than the pixels."""
_CROP, _COPY_NONE = 4, 64
_STOP_ON_WARNING, _LIMIT_SCANS = 8192, 32768
_JPEG = b"\xff\xd8\xff"


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Transform(ctypes.Structure):
    _fields_ = [
        ("region", _Region),
        ("operation", ctypes.c_int),
        ("options", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("filter", ctypes.c_void_p),
    ]


class _Handle:
    """One use of the library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._handle = library.tjInitTransform()
        if not self._handle:
            raise MemoryError("libturbojpeg: no memory for a transformer.")

    def close(self) -> None:
        self._library.tjDestroy(self._handle)

    def header(self, data: bytes) -> tuple[int, int, int, int] | None:
        """Width, height, number of the coarseness and of the colours; None for what the library cannot read."""
        found = [ctypes.c_int() for _ in range(4)]
        failed = self._library.tjDecompressHeader3(self._handle, data, len(data), *map(ctypes.byref, found))
        width, height, coarseness, colours = (item.value for item in found)
        return None if failed else (width, height, coarseness, colours)

    def crop(self, data: bytes, box: Box) -> bytes | None:
        """The file of a part, without its metadata; None for what is damaged in any way."""
        region = _Region(box.left, box.top, box.right - box.left, box.bottom - box.top)
        how = _Transform(region, 0, _CROP | _COPY_NONE, None, None)
        out, size = ctypes.c_void_p(), ctypes.c_ulong()
        try:
            failed = self._library.tjTransform(
                *(self._handle, data, len(data), 1, ctypes.byref(out), ctypes.byref(size), ctypes.byref(how)),
                _STOP_ON_WARNING | _LIMIT_SCANS,
            )
            return None if failed or not out.value else ctypes.string_at(out.value, size.value)
        finally:
            if out.value:
                self._library.tjFree(out)


def is_available() -> bool:
    """Whether pictures can be trimmed here."""
    return _library() is not None


def trim(
    data: bytes, transform: TransformSpec, *, seed: int = 0, epoch: int = 0, index: int = 0
) -> tuple[bytes, Window | None]:
    """What this sample's transform needs of a stored object, and where that lies in its picture.

    The object itself, and None, for what is no JPEG, is damaged, or would become little smaller (LEAST_SAVED). Of what
    `decode_image(part, window=window)` makes, the transform makes what it makes of the whole, to the last bit.
    """
    library = _library()
    if library is None or not data.startswith(_JPEG):
        return data, None
    with closing(_Handle(library)) as handle:
        header = handle.header(data)
        if header is None:
            return data, None
        width, height, coarseness, colours = header
        if colours not in _COLOURS or not 0 <= coarseness < len(_BLOCKS) or not 0 < width * height <= MAX_PIXELS:
            return data, None
        read = transform.part_read(width, height, seed=seed, epoch=epoch, index=index)
        box = _whole_blocks(read, width, height, *_BLOCKS[coarseness])
        if (box.right - box.left) * (box.bottom - box.top) > (1 - LEAST_SAVED) * width * height:
            return data, None
        part = handle.crop(data, box)
    if part is None or len(part) > (1 - LEAST_SAVED) * len(data):
        return data, None
    return part, Window(box.left, box.top, width, height)


def _whole_blocks(box: Box, width: int, height: int, block_width: int, block_height: int) -> Box:
    """The box with its edge, from the beginning of a block on; its end is nobody's neighbour, and may be anywhere."""
    left, top = max(0, box.left - _EDGE), max(0, box.top - _EDGE)
    return Box(
        left - left % block_width,
        top - top % block_height,
        min(width, box.right + _EDGE),
        min(height, box.bottom + _EDGE),
    )


@cache
def _library() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        return None
    try:
        library = ctypes.CDLL(name)
        library.tjInitTransform.restype = ctypes.c_void_p
        library.tjInitTransform.argtypes = []
        pointer, length, number = ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int
        library.tjDestroy.argtypes = library.tjFree.argtypes = [pointer]
        library.tjFree.restype = None
        library.tjDecompressHeader3.argtypes = [pointer, ctypes.c_char_p, length, *[ctypes.POINTER(number)] * 4]
        library.tjTransform.argtypes = [
            *(pointer, ctypes.c_char_p, length, number, pointer, pointer, pointer, number),
        ]
    except (OSError, AttributeError):
        return None
    return library
