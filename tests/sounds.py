# SPDX-License-Identifier: Apache-2.0
"""Recordings made from formulas: tones, sweeps, noise and pulses, at any rate and depth."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

KINDS = ("tone", "up", "down", "noise", "pulses", "high")


def write_wav(path: Path, x: np.ndarray, rate: int, bytes_a_sample: int = 2, channels: int = 1) -> Path:
    """``x`` in -1..1 as PCM, the same on each channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    most = 2 ** (8 * bytes_a_sample - 1) - 1
    codes = np.repeat(np.clip(np.rint(x * most), -most - 1, most).astype("<i8"), channels)
    if bytes_a_sample == 1:
        data = (codes + 128).astype(np.uint8).tobytes()
    else:
        data = codes.view(np.uint8).reshape(-1, 8)[:, :bytes_a_sample].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bytes_a_sample)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def sound(kind: str, rng: np.random.Generator, rate: int) -> np.ndarray:
    """0.6 to 1.3 seconds of one kind, its pitch and loudness drawn anew, a little noise over it."""
    t = np.arange(int(rate * rng.uniform(0.6, 1.3))) / rate
    f, sweep = rng.uniform(300, 900), rng.uniform(800, 1400)
    x = {
        "tone": np.sin(2 * np.pi * f * t),
        "up": np.sin(2 * np.pi * (f * t + sweep * t**2 / 2)),
        "down": np.sin(2 * np.pi * ((f + 1500) * t - sweep * t**2 / 2)),
        "noise": rng.normal(size=len(t)) * 0.4,
        "pulses": np.sin(2 * np.pi * f * t) * (np.sin(2 * np.pi * rng.uniform(4, 8) * t) > 0),
        "high": np.sin(2 * np.pi * (f + 2200) * t),
    }[kind]
    return np.clip(x * rng.uniform(0.2, 0.8) + rng.normal(size=len(t)) * 0.03, -1, 1)


def write_folder(root: Path, each: int, seed: int) -> Path:
    """``each`` recordings a kind in folders by their number, of mixed rates, depths and channels."""
    rng = np.random.default_rng(seed)
    for number, kind in enumerate(KINDS):
        for i in range(each):
            rate = int(rng.choice([8000, 16_000, 22_050, 44_100]))
            depth, channels = int(rng.integers(1, 5)), int(rng.integers(1, 3))
            write_wav(root / str(number) / f"{i:02}.wav", sound(kind, rng, rate), rate, depth, channels)
    return root
