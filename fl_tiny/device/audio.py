# SPDX-License-Identifier: Apache-2.0
"""WAV recordings as codes of a model's input: clips or their features, one clip in memory at a time."""

from __future__ import annotations

import math
import struct
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.dataset import BATCH, codes_of
from fl_tiny.errors import DataError
from fl_tiny.files import open_plain
from fl_tiny.learn import audio
from fl_tiny.learn.inputs import Seen
from fl_tiny.learn.tflite import Tensor
from fl_tiny.protocol.prepare import clip_samples, frame_samples
from fl_tiny.protocol.preprocess import Audio

SUFFIXES = frozenset({".wav", ".wave"})
MAX_CLIPS = 100_000  # guess: of all files together
MAX_FILE_BYTES = 4 << 30  # what the format can hold
MAX_FACTOR = 20_000  # of a fraction between two rates, 640 / 441 for usual ones; the filter takes 200 B each
MAX_CHANNELS, MAX_RATE = 32, 192_000  # guess: beyond any recorder
HINT = "give PCM of 8, 16, 24 or 32 bits: sox IN.wav -e signed-integer -b 16 OUT.wav"
DAMAGED = (wave.Error, EOFError, struct.error, RuntimeError, ValueError, OverflowError, ZeroDivisionError)


@dataclass(frozen=True, slots=True)
class Clip:
    """Where one sample lies: ``frames`` of the file from ``first`` on."""

    path: Path
    first: int
    frames: int


@dataclass(frozen=True, slots=True)
class Recordings:
    """Clips of WAV files, read when asked for. labels: (samples,) int64, or None.   how: settled for this model."""

    clips: tuple[Clip, ...]
    labels: NDArray[np.int64] | None
    source: Tensor
    how: Audio
    seen: Seen

    @property
    def samples(self) -> int:
        return len(self.clips)

    @property
    def names(self) -> tuple[str, ...]:
        """The file of each sample."""
        return tuple(str(clip.path) for clip in self.clips)

    @property
    def stretches(self) -> tuple[int, ...]:
        """Clips of one recording have one number."""
        numbers: dict[Path, int] = {}
        return tuple(numbers.setdefault(clip.path, len(numbers)) for clip in self.clips)

    def batches(self) -> Iterator[NDArray[Any]]:
        """Samples as codes of the model's input, (n, *shape without batch), at most ``BATCH`` at a time.

        Raises: DataError naming the file that cannot be read.
        """
        front = _front_end(self.how)
        for start in range(0, self.samples, BATCH):
            part = self.clips[start : start + BATCH]
            real = np.empty((len(part), *self.source.shape[1:]), np.float32)
            for row, clip in enumerate(part):
                made = _features(_samples(clip, self.how), self.how, *front)
                real[row] = (made * self.how.scale + self.how.offset).reshape(self.source.shape[1:])
            if not np.isfinite(real).all():
                raise DataError(f"{part[0].path}: its features are not finite", hint="is the floor of the log too low?")
            self.seen.add(real)
            yield codes_of(real, self.source, "the preprocessing")


def clips_of(path: Path, how: Audio) -> list[Clip]:
    """The clips that a file gives: one, or under "split" as many as fit. Raises: DataError."""
    with _Opened(path) as file:
        frames, rate = file.getnframes(), file.getframerate()
    length = max(1, -(-clip_samples(how) * rate // how.rate))
    if frames <= length or how.longer == "start":
        return [Clip(path, 0, min(frames, length))]
    if how.longer == "centre":
        return [Clip(path, (frames - length) // 2, length)]
    if frames // length > MAX_CLIPS:  # a damaged header may promise any number
        raise DataError(f"{path} gives {frames // length} clips, more than {MAX_CLIPS}", hint="cut it into parts")
    return [Clip(path, first, length) for first in range(0, frames - length + 1, length)]


class _Opened:
    """A WAV file for reading, its header within our bounds. Raises: DataError for what goes wrong inside."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> wave.Wave_read:
        self._file = open_plain(self._path, MAX_FILE_BYTES)
        try:
            found = wave.open(self._file, "rb")
            channels, rate = found.getnchannels(), found.getframerate()
            if not (1 <= channels <= MAX_CHANNELS and 1 <= rate <= MAX_RATE and 1 <= found.getsampwidth() <= 4):
                raise wave.Error(f"{channels} channels at {rate} Hz with {found.getsampwidth()} bytes a sample")
            if found.getnframes() < 1:
                raise wave.Error("it holds no sound")
        except DAMAGED as fault:
            self._file.close()
            raise _damaged(self._path, fault) from fault
        return found

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(fault, DAMAGED):
            raise _damaged(self._path, fault) from fault


def _samples(clip: Clip, how: Audio) -> NDArray[np.float64]:
    """One clip at the wanted rate in -1..1, channels averaged, silence added where it is short."""
    with _Opened(clip.path) as file:
        channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
        file.setpos(clip.first)
        data = file.readframes(clip.frames)
    if len(data) < clip.frames * channels * width:
        raise DataError(f"{clip.path} ends before its header says", hint="copy the file again")
    if max(rate, how.rate) // math.gcd(rate, how.rate) > MAX_FACTOR:
        raise DataError(f"{clip.path} has {rate} Hz, too odd for {how.rate} Hz", hint="sox IN.wav -r RATE OUT.wav")
    x = _real(data, width).reshape(-1, channels).mean(axis=1)
    x = audio.resampled(x, rate, how.rate)
    size = clip_samples(how)
    lacking = max(0, size - len(x))
    before = lacking // 2 if how.longer == "centre" else 0
    return np.pad(x[:size], (before, lacking - before))


def _real(data: bytes, width: int) -> NDArray[np.float64]:
    """PCM as numbers in -1..1: a byte is unsigned, more are signed, little endian."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float64) / 2**31
    return np.frombuffer(data, f"<i{width}").astype(np.float64) / 2.0 ** (8 * width - 1)


def _front_end(how: Audio) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The window of a frame and the weights of the mel bands, empty where they are not needed."""
    none = np.empty(0)
    if how.features == "none":
        return none, none
    assert how.fft is not None
    assert how.high_hz is not None
    frame = audio.window(how.window, frame_samples(how)[0])
    if how.features == "spectrogram":
        return frame, none
    return frame, audio.mel_bank(how.style, how.mels, how.fft, how.rate, how.low_hz, how.high_hz)


def _features(
    x: NDArray[np.float64], how: Audio, frame: NDArray[np.float64], bank: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(samples,) of a clip as they are, or its (frames, bins), without scale and offset."""
    if how.features != "none":
        assert how.fft is not None
        x = audio.spectrogram(x, frame, frame_samples(how)[1], how.fft, how.power)
        if how.features != "spectrogram":
            x = x @ bank
        x = audio.logarithm(x, how.log, how.floor, how.power)
        if how.features == "mfcc":
            x = audio.cepstra(x, how.style, how.mfcc)
    return audio.standardised(x) if how.normalise == "clip" else x


def _damaged(path: Path, fault: BaseException) -> DataError:
    return DataError(f"{path} is no WAV file that can be read: {str(fault)[:200]}", hint=HINT)
