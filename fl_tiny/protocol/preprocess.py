# SPDX-License-Identifier: Apache-2.0
"""How pictures, recordings and tables become a model's input, as data: a table of settings and a part of the manifest.

docs/config.md explains each key. None: what the model's input says (protocol/prepare.py fills it in before signing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol.fields import Key, choice, from_map, many, number, text, uint

LIMIT = 1024  # bytes in the manifest, which with 2,048 B of labels must fit a control message of 4,096 B
REAL = number(-1e9, 1e9)
ABOVE = number(1e-9, 1e9)


@dataclass(frozen=True, slots=True)
class Images:
    """range: what pixels 0 and 255 become.   mean, std: a channel, of pixels in 0..1, as torchvision has them."""

    kind: Annotated[str, Key(1, choice("image"))] = "image"
    resize: Annotated[str, Key(2, choice("stretch", "crop", "pad"))] = "stretch"
    colour: Annotated[str | None, Key(3, choice("rgb", "bgr", "grey"))] = None
    range: Annotated[tuple[float, ...] | None, Key(4, many(REAL, 2, 2))] = None
    mean: Annotated[tuple[float, ...] | None, Key(5, many(REAL, 1, 3))] = None
    std: Annotated[tuple[float, ...] | None, Key(6, many(ABOVE, 1, 3))] = None


@dataclass(frozen=True, slots=True)
class Audio:
    """A clip of samples in -1..1, or what is computed of its frames."""

    kind: Annotated[str, Key(1, choice("audio"))] = "audio"
    rate: Annotated[int, Key(2, uint(1000, 192_000))] = 16_000
    clip_ms: Annotated[float, Key(3, number(1.0, 60_000.0))] = 1000.0
    longer: Annotated[str, Key(4, choice("start", "centre", "split"))] = "start"
    features: Annotated[str, Key(5, choice("none", "spectrogram", "mel", "mfcc"))] = "none"
    frame_ms: Annotated[float, Key(6, number(1.0, 1000.0))] = 30.0
    hop_ms: Annotated[float, Key(7, number(1.0, 1000.0))] = 20.0
    window: Annotated[str, Key(8, choice("hann", "hamming", "none"))] = "hann"
    fft: Annotated[int | None, Key(9, uint(16, 16_384))] = None
    power: Annotated[int, Key(10, uint(1, 2))] = 2
    style: Annotated[str, Key(11, choice("tensorflow", "librosa"))] = "tensorflow"
    mels: Annotated[int, Key(12, uint(1, 256))] = 40
    low_hz: Annotated[float, Key(13, number(0.0, 96_000.0))] = 20.0
    high_hz: Annotated[float | None, Key(14, number(1.0, 96_000.0))] = None
    mfcc: Annotated[int, Key(15, uint(1, 256))] = 13
    log: Annotated[str, Key(16, choice("none", "natural", "log10", "db"))] = "natural"
    floor: Annotated[float, Key(17, number(1e-20, 1e9))] = 1e-6
    normalise: Annotated[str, Key(18, choice("none", "clip"))] = "none"
    scale: Annotated[float, Key(19, REAL)] = 1.0
    offset: Annotated[float, Key(20, REAL)] = 0.0


@dataclass(frozen=True, slots=True)
class Series:
    """Rows of a table; ``window`` consecutive ones are a sample.   mean, std: a column, or one for all."""

    kind: Annotated[str, Key(1, choice("series"))] = "series"
    columns: Annotated[tuple[str, ...] | None, Key(2, many(text(1, 48), 1, 64))] = None
    label: Annotated[str, Key(3, text(1, 48))] = "label"
    group: Annotated[str | None, Key(4, text(1, 48))] = None
    window: Annotated[int | None, Key(5, uint(1, 65_535))] = None
    hop: Annotated[int | None, Key(6, uint(1, 65_535))] = None
    mean: Annotated[tuple[float, ...] | None, Key(7, many(REAL, 1, 64))] = None
    std: Annotated[tuple[float, ...] | None, Key(8, many(ABOVE, 1, 64))] = None


Preprocess: TypeAlias = Images | Audio | Series
KINDS: dict[str, type[Images] | type[Audio] | type[Series]] = {"image": Images, "audio": Audio, "series": Series}


def described(value: Any, where: str) -> Preprocess:
    """A map inside a manifest: the kind that its key 1 names. Raises: MalformedMessage."""
    kind = value.get(1) if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise MalformedMessage(f"{where}.kind is none of {', '.join(KINDS)}")
    return from_map(KINDS[kind], value, where)
