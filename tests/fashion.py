# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST as tests/models/fashion.tflite is tried on it: upside down and of low contrast."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
CONTRAST = 0.4  # as in scripts/make_fashion.py, whose figures hold for it


def read(part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (n, 28, 28, 1) in [0, 1] and labels (n,) of ``part``, "train" or "t10k". Raises: FileNotFoundError."""
    images, labels = (
        gzip.decompress((DATA / f"{part}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1")
    )
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)  # idx3 header: 16 bytes, idx1: 8
    return pixels.astype(np.float32) / 255, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def upside_down(images: NDArray[Any]) -> NDArray[Any]:
    """``images``: (n, 28, 28, 1) in [0, 1], rotated by 180 degrees, contrast cut to CONTRAST around mid grey."""
    return (images[:, ::-1, ::-1] - np.float32(0.5)) * np.float32(CONTRAST) + np.float32(0.5)
