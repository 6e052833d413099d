# SPDX-License-Identifier: Apache-2.0
"""A camera's frame as a picture's file, so that frames and files become samples by one way."""

from __future__ import annotations

import struct

import numpy as np

from fl_tiny.errors import DataError


def picture(kind: str, data: bytes, width: int, height: int, stride: int) -> bytes:
    """The file: JPEG as it came (decoders know the tables that MJPEG leaves out), YUYV as BMP. Raises: DataError."""
    return data if kind == "MJPG" else _bmp(data, width, height, stride)


def _bmp(data: bytes, width: int, height: int, stride: int) -> bytes:
    """24-bit BMP of YUYV, top row first.

    Source: V4L2's V4L2_PIX_FMT_YUYV; ITU-R BT.601 in its narrow range, V4L2's default for such frames.
    """
    if width < 2 or width % 2 or stride < 2 * width or len(data) < stride * (height - 1) + 2 * width:
        raise DataError(f"a frame of {width} x {height} has {len(data)} bytes, {stride} a line")
    padded = data.ljust(stride * height, b"\0")
    rows = np.frombuffer(padded[: stride * height], np.uint8).reshape(height, stride)[:, : 2 * width]
    y = (rows[:, 0::2].astype(np.float32) - 16) * (255 / 219)
    u, v = (np.repeat(rows[:, at::4].astype(np.float32) - 128, 2, axis=1) * (255 / 224) for at in (1, 3))
    line = -(-3 * width // 4) * 4
    pixels = np.zeros((height, line), np.uint8)
    for at, channel in enumerate((y + 1.772 * u, y - 0.344136 * u - 0.714136 * v, y + 1.402 * v)):  # blue first
        pixels[:, at : 3 * width : 3] = np.clip(np.rint(channel), 0, 255).astype(np.uint8)
    head = struct.pack("<2sIHHI", b"BM", 54 + pixels.size, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, pixels.size, 0, 0, 0, 0) + pixels.tobytes()
