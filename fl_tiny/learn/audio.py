# SPDX-License-Identifier: Apache-2.0
"""Recordings as numbers that models are trained on: another rate, frames, spectra, mel bands, cepstra.

``style`` says whose definitions hold: "tensorflow" as tf.signal has them, "librosa" as librosa with its defaults.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HALF_TAPS = 10  # zero crossings of the filter on each side, and its Kaiser window: scipy.signal.resample_poly's
KAISER_BETA = 5.0
CELLS = 1 << 20  # products at a time, 8 MB an array
FRAMES = 256  # frames at a time


def resampled(x: Floats, rate: int, wanted: int) -> Floats:
    """``x`` at another rate, ceil(len * wanted / rate) samples; silence is thought around it.

    Source: polyphase filtering with a sinc in a Kaiser window, the same numbers as scipy.signal.resample_poly.
    """
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    if up == down:
        return x
    half = HALF_TAPS * max(up, down)
    at = np.arange(-half, half + 1)
    taps = np.sinc(at / max(up, down)) * np.kaiser(2 * half + 1, KAISER_BETA)
    taps *= up / taps.sum()
    reach = half // up + 1  # input samples on each side that one output hears
    padded = np.concatenate([np.zeros(reach), x, np.zeros(reach + 1)])
    count = -(-len(x) * up // down)
    near = np.arange(-reach, reach + 1)
    made = np.empty(count)
    block = max(1, CELLS // len(near))
    for start in range(0, count, block):
        place = np.arange(start, min(start + block, count)) * down
        centre, phase = place // up, place % up
        tap = phase[:, None] - near * up + half  # y[n] = sum over k of taps[n * down - k * up] * x[k]
        inside = (tap >= 0) & (tap <= 2 * half)
        weight = np.where(inside, taps[np.clip(tap, 0, 2 * half)], 0.0)
        heard = padded[np.minimum(centre[:, None] + near + reach, len(padded) - 1)]
        made[start : start + len(place)] = (weight * heard).sum(axis=1)
    return made


def window(name: str, size: int) -> Floats:
    """A periodic window of ``size`` samples: "hann", "hamming", or "none": all ones."""
    if name == "none":
        return np.ones(size)
    most = {"hann": 0.5, "hamming": 0.54}[name]
    made: Floats = most - (1 - most) * np.cos(2 * np.pi * np.arange(size) / size)
    return made


def spectrogram(x: Floats, frame: Floats, hop: int, fft: int, power: int) -> Floats:
    """(frames, fft // 2 + 1) magnitudes to the power 1 or 2. ``frame``: the window; the first begins at sample 0."""
    count = 1 + (len(x) - len(frame)) // hop
    made = np.empty((count, fft // 2 + 1))
    for start in range(0, count, FRAMES):
        first = np.arange(start, min(start + FRAMES, count)) * hop
        frames = x[first[:, None] + np.arange(len(frame))] * frame
        made[start : start + len(first)] = np.abs(np.fft.rfft(frames, fft, axis=1))
    return made if power == 1 else made**2


def mel_bank(style: str, mels: int, fft: int, rate: int, low_hz: float, high_hz: float) -> Floats:
    """(fft // 2 + 1, mels) weights of triangular bands that are evenly spaced in mel.

    Source: tf.signal.linear_to_mel_weight_matrix; librosa.filters.mel.
    """
    hertz = np.linspace(0, rate / 2, fft // 2 + 1)
    if style == "tensorflow":  # triangles straight in mel, nothing of the constant part
        at = _htk(hertz)[:, None]
        edges = np.linspace(_htk(np.array(low_hz)), _htk(np.array(high_hz)), mels + 2)
        bank = _triangles(at, edges)
        bank[0] = 0
        return bank
    low, high = _slaney(np.array([low_hz, high_hz]))
    edges = _hertz(np.linspace(low, high, mels + 2))
    bank = _triangles(hertz[:, None], edges)
    bank *= 2 / (edges[2:] - edges[:-2])
    return bank


def cepstra(bands: Floats, style: str, count: int) -> Floats:
    """(frames, count) MFCC of (frames, mels) logarithms: a DCT-II, orthonormal but for TensorFlow's first."""
    mels = bands.shape[1]
    angle = np.pi / mels * np.outer(np.arange(mels) + 0.5, np.arange(count))
    basis = np.cos(angle) * math.sqrt(2 / mels)
    if style == "librosa":
        basis[:, 0] *= math.sqrt(0.5)
    made: Floats = bands @ basis
    return made


def logarithm(x: Floats, kind: str, floor: float, power: int) -> Floats:
    """The logarithm of x + floor, x >= 0: "natural", "log10", "db" (of x = magnitude to the power 1 or 2) or "none"."""
    if kind == "none":
        return x
    made: Floats = np.log(x + floor) if kind == "natural" else np.log10(x + floor)
    return made * (20 / power) if kind == "db" else made


def standardised(x: Floats) -> Floats:
    """``x`` moved and scaled to a mean of 0 and a standard deviation of 1; without spread only moved."""
    spread = float(x.std())
    made: Floats = (x - x.mean()) / (spread if spread > 1e-12 else 1.0)
    return made


def _triangles(at: Floats, edges: Floats) -> Floats:
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    made: Floats = np.maximum(0.0, np.minimum(rising, falling))
    return made


def _htk(hertz: Floats) -> Floats:
    made: Floats = 1127.0 * np.log1p(hertz / 700.0)
    return made


def _slaney(hertz: Floats) -> Floats:
    """Straight up to 1,000 Hz = 15 mel, then 27 mel a factor of 6.4. Source: Slaney's Auditory Toolbox."""
    bent = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / math.log(6.4)
    made: Floats = np.where(hertz < 1000, hertz * 3 / 200, bent)
    return made


def _hertz(mel: Floats) -> Floats:
    made: Floats = np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))
    return made
