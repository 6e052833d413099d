# SPDX-License-Identifier: Apache-2.0
"""Pictures as codes of a model's input, one file in memory at a time; the only module that imports Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.dataset import codes_of
from fl_tiny.device.faults import Faults
from fl_tiny.device.folder import FileSamples
from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.files import open_plain
from fl_tiny.learn.inputs import Seen
from fl_tiny.learn.tflite import Tensor
from fl_tiny.protocol.preprocess import Images

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # no others of Pillow's fifty decoders see a byte
MAX_FILE_BYTES = 32 << 20
MAX_PIXELS = {"PNG": 24_000_000, "JPEG": 24_000_000, "BMP": 24_000_000, "WEBP": 12_000_000}
ORIENTATION = 0x0112  # EXIF's tag


def pictures(
    paths: Sequence[Path], labels: NDArray[np.int64] | None, source: Tensor, how: Images, seen: Seen, faults: Faults
) -> FileSamples:
    """Picture files as samples. labels: of each, or None.   how: settled for this model."""
    shape = source.shape[1:]
    channels = shape[2] if len(shape) == 3 else 1
    real = _mapping(how, channels)
    table = codes_of(real, source, "the preprocessing")  # a code for each value of a pixel

    def read(number: int) -> NDArray[Any]:
        pixels = _pixels(paths[number], how, shape[1], shape[0]).reshape(shape[0], shape[1], channels)
        codes = np.empty(pixels.shape, table.dtype)
        for channel in range(channels):
            codes[..., channel] = table[channel][pixels[..., channel]]
            seen.add(real[channel], np.bincount(pixels[..., channel].ravel(), minlength=256))
        return codes.reshape(shape)

    return FileSamples(paths, labels, read, seen, faults)


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
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_plain(path, MAX_FILE_BYTES) as file, Image.open(file, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS[str(picture.format)]:
                    raise Image.DecompressionBombError
                found = _upright(picture)
        mode = "L" if how.colour == "grey" else "RGB"
        if found.mode != mode:
            found = found.convert(mode)
        if found.size != (width, height):
            if how.resize == "crop":
                found = ImageOps.fit(found, (width, height), Image.Resampling.BILINEAR)
            elif how.resize == "pad":
                found = ImageOps.pad(found, (width, height), Image.Resampling.BILINEAR)
            else:
                found = found.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(found, np.uint8)
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        most = ", ".join(f"{kind} {pixels // 10**6}" for kind, pixels in MAX_PIXELS.items())
        raise DataError(f"{path} has too many pixels; millions at most: {most}", hint="make it smaller") from fault
    except Exception as fault:  # a decoder of foreign bytes raises OSError, SyntaxError, struct.error, and more
        why = "it is of no kind that fl-tiny reads" if "cannot identify" in str(fault) else str(fault)[:120]
        raise DataError(f"{path} is no picture that can be read: {why}", hint=_way_out(path)) from fault
    return pixels[..., ::-1] if how.colour == "bgr" else pixels


def _upright(picture: Any) -> Any:
    """A picture as it was seen, with eight bits a channel; at most twice in memory at any moment."""
    from PIL import Image, ImageOps  # noqa: PLC0415 - as above

    picture.load()
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture) or picture
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        wide = np.ascontiguousarray(np.asarray(picture))
        order = 1 if wide.dtype.byteorder != ">" else wide.dtype.itemsize - 2
        return Image.fromarray(np.ascontiguousarray(wide.view(np.uint8).reshape(*wide.shape, -1)[..., order]))
    return picture


def _way_out(path: Path) -> str:
    """What makes a picture of another kind one that is read."""
    with open_plain(path, MAX_FILE_BYTES) as file:
        is_heic = file.read(12)[4:8] == b"ftyp"
    return "heif-convert IN OUT.jpg: it is a HEIC or AVIF" if is_heic else f"give {', '.join(FORMATS)}"
