# SPDX-License-Identifier: Apache-2.0
"""Recordings as codes of a model's input: clips or their features, one clip in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.dataset import codes_of
from fl_tiny.device.faults import Faults
from fl_tiny.device.folder import FileSamples
from fl_tiny.device.sound import opened
from fl_tiny.errors import DataError
from fl_tiny.learn import audio
from fl_tiny.learn.inputs import Seen
from fl_tiny.learn.tflite import Tensor
from fl_tiny.protocol.prepare import clip_samples, frame_samples
from fl_tiny.protocol.preprocess import Audio

MAX_CLIPS = 100_000  # guess: of all files together
MAX_FACTOR = 20_000  # of a fraction between two rates, 640 / 441 for usual ones; the filter takes 200 B each


@dataclass(frozen=True, slots=True)
class Clip:
    """Where one sample lies: ``frames`` of the file from ``first`` on."""

    path: Path
    first: int
    frames: int


def recordings(
    clips: Sequence[Clip], labels: NDArray[np.int64] | None, source: Tensor, how: Audio, seen: Seen, faults: Faults
) -> FileSamples:
    """Clips as samples. labels: of each clip, or None.   how: settled for this model."""
    front = _front_end(how)
    codes_of(np.zeros(1), source, "the preprocessing")  # an input without a scale is no fault of a file

    def read(number: int) -> NDArray[np.generic]:
        clip = clips[number]
        features = _features(_samples(clip, how), how, *front)
        real = (features * how.scale + how.offset).reshape(source.shape[1:]).astype(np.float32)
        if not np.isfinite(real).all():
            raise DataError(f"{clip.path}: its features are not finite", hint="is the floor of the log too low?")
        seen.add(real)
        return codes_of(real, source, "the preprocessing")

    return FileSamples(tuple(clip.path for clip in clips), labels, read, seen, faults, stretched=True)


def clips_of(path: Path, how: Audio) -> list[Clip]:
    """The clips that a file gives: one, or under "split" as many as fit. Raises: DataError, EnvironmentFault."""
    with opened(path) as sound:
        frames, rate = sound.frames, sound.rate
    if max(rate, how.rate) // math.gcd(rate, how.rate) > MAX_FACTOR:
        raise DataError(f"{path} has {rate} Hz, too odd for {how.rate} Hz", hint="sox IN -r RATE OUT.wav")
    length = max(1, -(-clip_samples(how) * rate // how.rate))
    if frames <= length or how.longer == "start":
        return [Clip(path, 0, min(frames, length))]
    if how.longer == "centre":
        return [Clip(path, (frames - length) // 2, length)]
    if frames // length > MAX_CLIPS:
        raise DataError(f"{path} gives {frames // length} clips, more than {MAX_CLIPS}", hint="cut it into parts")
    return [Clip(path, first, length) for first in range(0, frames - length + 1, length)]


def _samples(clip: Clip, how: Audio) -> NDArray[np.float64]:
    """One clip at the table's rate in -1..1, channels averaged, silence added where it is short."""
    with opened(clip.path) as sound:
        rate = sound.rate
        x = sound.mono(clip.first, clip.frames)
    if not np.isfinite(x).all():
        raise DataError(f"{clip.path} holds a number that is not finite", hint="export it anew, as 16 bits")
    x = audio.resampled(x, rate, how.rate)
    size = clip_samples(how)
    lacking = max(0, size - len(x))
    before = lacking // 2 if how.longer == "centre" else 0
    return np.pad(x[:size], (before, lacking - before))


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
