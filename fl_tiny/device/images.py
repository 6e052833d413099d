# SPDX-License-Identifier: Apache-2.0
"""Pictures as codes of a model's input, one file in memory at a time; the only module that imports Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.dataset import BATCH, codes_of
from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.files import open_plain
from fl_tiny.learn.inputs import Seen
from fl_tiny.learn.tflite import Tensor
from fl_tiny.protocol.preprocess import Images

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # no others of Pillow's fifty decoders see a byte
MAX_FILE_BYTES = 32 << 20
MAX_PIXELS = 24_000_000  # guess: what a board's camera takes, 72 MB when decoded


@dataclass(frozen=True, slots=True)
class Pictures:
    """Picture files, read when asked for. labels: (samples,) int64, or None.   how: settled for this model."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64] | None
    source: Tensor
    how: Images
    seen: Seen

    @property
    def samples(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """The file of each sample."""
        return tuple(map(str, self.paths))

    @property
    def stretches(self) -> None:
        """Nobody says which pictures came in one piece."""
        return None

    def batches(self) -> Iterator[NDArray[Any]]:
        """Samples as codes of the model's input, (n, *shape without batch), at most ``BATCH`` at a time.

        Raises: DataError naming the file that is no picture; EnvironmentFault without Pillow.
        """
        shape = self.source.shape[1:]
        height, width = shape[0], shape[1]
        channels = shape[2] if len(shape) == 3 else 1
        real = _mapping(self.how, channels)
        table = codes_of(real, self.source, "the preprocessing")  # a code for each value of a pixel
        for start in range(0, self.samples, BATCH):
            part = self.paths[start : start + BATCH]
            codes = np.empty((len(part), height, width, channels), table.dtype)
            for row, path in enumerate(part):
                pixels = _pixels(path, self.how, width, height).reshape(height, width, channels)
                for channel in range(channels):
                    codes[row, ..., channel] = table[channel][pixels[..., channel]]
                    counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
                    self.seen.add(real[channel], counts)
            yield codes.reshape(len(part), *shape)


def _mapping(how: Images, channels: int) -> NDArray[np.float32]:
    """(channels, 256): the real number that each value of a pixel becomes."""
    level = np.arange(256) / 255
    if how.range is not None:
        low, high = how.range
        return np.tile(low + (high - low) * level, (channels, 1)).astype(np.float32)
    assert how.mean is not None
    assert how.std is not None
    made: NDArray[np.float64] = (level - np.array(how.mean)[:, None]) / np.array(how.std)[:, None]
    return made.astype(np.float32)


def _pixels(path: Path, how: Images, width: int, height: int) -> NDArray[np.uint8]:
    """(height, width[, 3]) bytes of one picture, turned upright, in the channels wanted."""
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 - an extra, and 10 MB that other commands do not need
    except ImportError as cause:
        raise EnvironmentFault("pictures need Pillow", hint="pip install 'fl-tiny[data]'") from cause
    try:
        with open_plain(path, MAX_FILE_BYTES) as file, Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{path} has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
            upright = ImageOps.exif_transpose(picture) or picture
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
                upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8))
            coloured = upright.convert("L" if how.colour == "grey" else "RGB")
            if coloured.size != (width, height):
                if how.resize == "crop":
                    coloured = ImageOps.fit(coloured, (width, height), Image.Resampling.BILINEAR)
                elif how.resize == "pad":
                    coloured = ImageOps.pad(coloured, (width, height), Image.Resampling.BILINEAR)
                else:
                    coloured = coloured.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(coloured, np.uint8)
    except DataError:
        raise
    except Exception as fault:  # a decoder of foreign bytes raises OSError, SyntaxError, struct.error, and more
        why = "it is of no kind that fl-tiny reads" if "cannot identify" in str(fault) else str(fault)[:200]
        raise DataError(f"{path} is no picture that can be read: {why}", hint=f"give {', '.join(FORMATS)}") from fault
    return pixels[..., ::-1] if how.colour == "bgr" else pixels
