# SPDX-License-Identifier: Apache-2.0
"""Resampling and features are those of SciPy, and of the definitions that tf.signal and librosa publish."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fl_tiny.learn import audio

TENSORFLOW = [  # tf.signal.linear_to_mel_weight_matrix(4, 17, 8000, 100, 4000)[:6] of TensorFlow 2.15.1
    [0.0, 0.0, 0.0, 0.0],
    [0.4852591, 0.0, 0.0, 0.0],
    [0.8550751, 0.1449249, 0.0, 0.0],
    [0.3207063, 0.6792937, 0.0, 0.0],
    [0.0, 0.8715502, 0.1284498, 0.0],
    [0.0, 0.4841309, 0.5158691, 0.0],
]
LIBROSA = [  # librosa.filters.mel(sr=8000, n_fft=32, n_mels=4, fmin=100, fmax=4000).T[:6] of librosa 0.11.0
    [0.0, 0.0, 0.0, 0.0],
    [0.000744541, 0.0, 0.0, 0.0],
    [0.001985442, 0.0, 0.0, 0.0],
    [0.001229486, 0.000865108, 0.0, 0.0],
    [0.0, 0.001922861, 5.153e-06, 0.0],
    [0.0, 0.001100976, 0.0005653, 0.0],
]
NOISE = np.random.default_rng(0).normal(size=3000) * 0.1


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [(44_100, 16_000), (8000, 16_000), (48_000, 16_000), (11_025, 16_000), (16_000, 8000), (192_000, 1000), (7, 5)],
)
def test_another_rate_is_what_scipy_makes_of_it(rate: int, wanted: int) -> None:
    signal = pytest.importorskip("scipy.signal", reason="SKIPPED: SciPy is not installed")
    common = math.gcd(rate, wanted)
    expected = signal.resample_poly(NOISE, wanted // common, rate // common)
    found = audio.resampled(NOISE, rate, wanted)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-12


def test_the_same_rate_changes_nothing_and_a_constant_stays_one() -> None:
    assert audio.resampled(NOISE, 16_000, 16_000) is NOISE
    assert np.allclose(audio.resampled(np.ones(4000), 44_100, 16_000)[100:-100], 1, atol=1e-3)


def test_a_spectrogram_is_what_scipy_makes_of_it() -> None:
    signal = pytest.importorskip("scipy.signal", reason="SKIPPED: SciPy is not installed")
    frame = audio.window("hann", 480)
    assert np.allclose(frame, signal.get_window("hann", 480), atol=1e-15)
    assert np.allclose(audio.window("hamming", 480), signal.get_window("hamming", 480), atol=1e-15)
    found = audio.spectrogram(NOISE, frame, 320, 512, 2)
    expected = [np.abs(np.fft.fft(NOISE[i : i + 480] * frame, 512)[:257]) ** 2 for i in range(0, 3000 - 479, 320)]
    assert np.allclose(found, expected)
    assert np.allclose(audio.spectrogram(NOISE, frame, 320, 512, 1) ** 2, expected)


def test_cepstra_are_the_orthonormal_dct_but_for_tensorflows_first() -> None:
    fft = pytest.importorskip("scipy.fft", reason="SKIPPED: SciPy is not installed")
    bands = np.random.default_rng(1).normal(size=(7, 40))
    expected = fft.dct(bands, type=2, norm="ortho", axis=1)[:, :13]
    assert np.allclose(audio.cepstra(bands, "librosa", 13), expected)
    # tf.signal.mfccs_from_log_mel_spectrograms: the plain DCT-II (twice the sum of cosines) over sqrt(2 n)
    plain = fft.dct(bands, type=2, axis=1)[:, :13] / math.sqrt(2 * 40)
    assert np.allclose(audio.cepstra(bands, "tensorflow", 13), plain)


def test_mel_bands_are_those_of_the_libraries() -> None:
    found = audio.mel_bank("tensorflow", 4, 32, 8000, 100.0, 4000.0)
    assert found.shape == (17, 4)
    assert np.allclose(found[:6], TENSORFLOW, atol=1e-6)
    assert np.allclose(audio.mel_bank("librosa", 4, 32, 8000, 100.0, 4000.0)[:6], LIBROSA, atol=1e-8)
