"""Small pictures as PNG in a data: URI, written with zlib alone."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_SIDE = 64  # larger pictures are averaged down: a thumbnail shows no more
# Ends of the scale of differences: less is blue, more is orange, for colour-blind eyes too.
_LESS, _EQUAL, _MORE = ((0, 90, 160), (250, 250, 250), (190, 80, 0))


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether inputs of that shape are pictures: a plane, 1 or 3 of them, or flat and square."""
    if len(shape) == 1:
        return shape[0] >= 64 and round(shape[0] ** 0.5) ** 2 == shape[0]
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def as_planes(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """An input as [C,H,W] with C of 1 or 3, averaged down to a thumbnail."""
    if x.ndim == 1:
        side = round(x.size**0.5)
        x = x.reshape(side, side)
    planes = x.reshape(-1, *x.shape[-2:])
    step = -(-max(planes.shape[1:]) // _SIDE)
    if step == 1:
        return planes
    height, width = (max(1, size // step) for size in planes.shape[1:])
    cut = planes[:, : height * step, : width * step]
    rows, columns = (min(step, size) for size in planes.shape[1:])
    parts = cut.reshape(len(planes), height, rows, width, columns)
    return np.asarray(parts.mean((2, 4)))


def picture(x: NDArray[np.float64], low: float, high: float) -> str:
    """An input whose values lie in [low, high], black to white, as a data: URI."""
    planes = as_planes(x)
    scaled = (planes - low) / ((high - low) or 1.0)
    return uri(_bytes(scaled).transpose(1, 2, 0))


def difference(x: NDArray[np.float64], factor: float) -> str:
    """A difference times the factor, of which 1 is the end of the scale, as a data: URI."""
    planes = np.clip(as_planes(x) * factor, -1, 1)
    if len(planes) == 3:  # a colour each way: gray is no change
        return uri(_bytes(planes / 2 + 0.5).transpose(1, 2, 0))
    amount = np.abs(planes[0])[..., None]
    end = np.where(planes[0][..., None] < 0, np.array(_LESS), np.array(_MORE))
    return uri(_bytes((np.array(_EQUAL) * (1 - amount) + end * amount) / 255))


def _bytes(x: NDArray[np.float64]) -> Pixels:
    return np.round(np.clip(np.nan_to_num(x), 0, 1) * 255).astype(np.uint8)


def uri(pixels: Pixels) -> str:
    """Pixels [H,W,C] as a data: URI."""
    return "data:image/png;base64," + base64.b64encode(encode(pixels)).decode("ascii")


def encode(pixels: Pixels) -> bytes:
    """Pixels [H,W,C], C of 1 (gray) or 3 (red, green, blue), as a PNG file."""
    height, width, channels = pixels.shape
    kind = {1: 0, 3: 2}[channels]
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # filter 0 before each line
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
