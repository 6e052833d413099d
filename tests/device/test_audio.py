# SPDX-License-Identifier: Apache-2.0
"""A recording becomes the clip or the features that the table says, whatever its rate and depth."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_tiny.device.sources.files import Source, Wanted, open_samples
from fl_tiny.errors import ConfigError, DataError
from fl_tiny.protocol.preprocess import Audio
from tests.learn.tiny import taking
from tests.sounds import write_wav

RAW = Audio(rate=8000, clip_ms=100)  # 800 samples


def clips(path: Path, how: Audio = RAW, shape: tuple[int, ...] = (800,)) -> np.ndarray:
    samples, _ = open_samples(Source("wav", path), Wanted(taking(shape, "float32"), None, None, how))
    found = np.concatenate(list(samples.batches()))
    assert samples.names is not None and len(samples.names) == samples.samples == len(found)
    assert samples.stretches is not None and len(set(samples.stretches)) == len(set(samples.names))
    return found


def tone(seconds: float, rate: int, hertz: float = 440) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate) * 0.5


@pytest.mark.parametrize(("depth", "error"), [(1, 1 / 100), (2, 1e-4), (3, 1e-6), (4, 1e-7)])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_depth_of_pcm_is_the_same_sound(tmp_path: Path, depth: int, error: float, channels: int) -> None:
    found = clips(write_wav(tmp_path / "a.wav", tone(0.1, 8000), 8000, depth, channels))
    assert np.abs(found[0] - tone(0.1, 8000)).max() < error


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100, 48_000])
def test_another_rate_is_the_same_sound(tmp_path: Path, rate: int) -> None:
    found = clips(write_wav(tmp_path / "a.wav", tone(0.2, rate), rate))
    inner = slice(50, -50)  # beyond the ends there is silence, which the filter hears
    assert np.abs(found[0] - tone(0.1, 8000))[inner].max() < 0.01


@pytest.mark.parametrize(
    ("longer", "firsts"),
    [("start", [0]), ("centre", [900]), ("split", [0, 800, 1600])],
    ids=["start", "centre", "split"],
)
def test_a_longer_recording_is_cut_as_the_table_says(tmp_path: Path, longer: str, firsts: list[int]) -> None:
    x = np.linspace(-0.5, 0.5, 2600)
    found = clips(write_wav(tmp_path / "a.wav", x, 8000), Audio(rate=8000, clip_ms=100, longer=longer))
    assert np.allclose(found, [x[first : first + 800] for first in firsts], atol=1e-4)


def test_a_shorter_recording_ends_in_silence(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.full(200, 0.5), 8000)
    for longer, before in (("start", 0), ("centre", 300), ("split", 0)):
        found = clips(path, Audio(rate=8000, clip_ms=100, longer=longer))[0]
        assert np.allclose(found[before : before + 200], 0.5, atol=1e-4)
        assert np.count_nonzero(found) == 200


def test_features_find_a_tone_where_it_is(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.1, 8000, 1000), 8000)
    how = Audio(rate=8000, clip_ms=100, features="spectrogram", frame_ms=32, hop_ms=16, log="none")
    found = clips(path, how, (5, 129))  # bins of 8000 / 256 = 31.25 Hz
    assert set(found[0].argmax(axis=1)) == {32}
    scaled = clips(path, Audio(**{**as_dict(how), "scale": 2.0, "offset": -1.0}), (5, 129, 1))
    assert np.allclose(scaled[0, ..., 0], found[0] * 2 - 1, rtol=1e-5)
    even = clips(path, Audio(**{**as_dict(how), "normalise": "clip"}), (5, 129))
    assert abs(even.mean()) < 1e-5 and abs(even.std() - 1) < 1e-5


def as_dict(how: Audio) -> dict[str, object]:
    return {name: getattr(how, name) for name in Audio.__dataclass_fields__}


def test_a_shape_that_does_not_fit_says_what_would(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.1, 8000), 8000)
    with pytest.raises(ConfigError, match=r"a clip gives \[800\] samples, the model takes \[1600\]; clip_ms = 200"):
        clips(path, shape=(1600,))
    with pytest.raises(ConfigError, match=r"\[49, 10\] frames and bins, the model takes \[50, 10, 1\]; clip_ms = 1010"):
        clips(path, Audio(features="mel", mels=10), (50, 10, 1))
    faulty = Audio(features="mfcc", frame_ms=900, fft=64, mels=5, mfcc=6, low_hz=5000, high_hz=4000)
    with pytest.raises(ConfigError, match=r"fft: .*low_hz and high_hz: .*mfcc: 6 coefficients of 5 mels"):
        clips(path, faulty)


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "whole.wav", tone(0.1, 8000), 8000).read_bytes()
    floats = whole[:20] + b"\x03\x00" + whole[22:]  # format 3: floating point
    for number, data in enumerate((b"", b"text", whole[:30], whole[:-100], floats, whole[:44])):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"{number}\.wav"):
            clips(path)
    promising = bytearray(whole)
    promising[40:44] = b"\0\0\0\x70"  # two gigabytes
    (tmp_path / "e.wav").write_bytes(promising)
    with pytest.raises(DataError, match=r"e\.wav .* ends before its header says"):
        clips(tmp_path / "e.wav", Audio(rate=8000, clip_ms=100, longer="split"))
    many = bytearray(write_wav(tmp_path / "many.wav", np.zeros(120_000), 8000).read_bytes())
    many[24:28] = b"\x01\0\0\0"  # 1 Hz: each number is a clip
    (tmp_path / "many.wav").write_bytes(many)
    with pytest.raises(DataError, match=r"many\.wav gives \d+ clips"):
        clips(tmp_path / "many.wav", Audio(rate=8000, clip_ms=100, longer="split"))
    with pytest.raises(DataError, match=r"odd\.wav has 191999 Hz"):
        clips(write_wav(tmp_path / "odd.wav", tone(0.1, 8000), 191_999))
    with pytest.raises(DataError, match="no file"):
        clips(Path("/dev/zero"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_recording_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(write_wav(tmp_path / "b.wav", tone(0.05, 8000), 8000).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 47))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.wav").write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    try:
        assert clips(tmp_path / "a.wav").shape[1:] == (800,)
    except DataError as fault:
        assert "a.wav" in fault.what


def test_of_a_long_recording_only_clips_are_in_memory(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=8000 * 120) * 0.1  # two minutes, 7.7 MB as numbers
    path = write_wav(tmp_path / "a.wav", x, 8000)
    samples, _ = open_samples(
        Source("wav", path),
        Wanted(taking((800,), "float32"), None, None, Audio(rate=8000, clip_ms=100, longer="split")),
    )
    tracemalloc.start()
    count = sum(len(batch) for batch in samples.batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1200
    assert peak < 1_000_000


def test_a_bad_recording_is_counted_once_among_the_files_though_each_gives_many_clips(tmp_path: Path) -> None:
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav", tone(0.5, 8000), 8000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    wanted = Wanted(taking((800,), "float32"), None, None, Audio(rate=8000, clip_ms=100, longer="split"))
    samples, _ = open_samples(Source("wav", tmp_path), wanted, skip_bad=True)
    assert sum(map(len, samples.batches())) == 15
    assert samples.faults.summary().startswith("1 of 4 files cannot be used: is no recording")
