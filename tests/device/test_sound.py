# SPDX-License-Identifier: Apache-2.0
"""A recording as recorders, phones and editors write it is the same sound; what is not read says what would be."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_tiny.device import sound
from fl_tiny.device.sound import opened
from fl_tiny.errors import DataError, EnvironmentFault
from tests.sounds import write_wav

TONE = np.sin(np.arange(4000) / 9) * 0.5
PCM16 = np.rint(TONE * 32767).astype("<i2").tobytes()
GUID = bytes.fromhex("000000001000800000aa00389b71")


def chunk(name: bytes, data: bytes, size: int | None = None, pad: bool = True) -> bytes:
    return name + struct.pack("<I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2 and pad)


def fmt(coding: int = 1, bits: int = 16, channels: int = 1, width: int = 0, rate: int = 8000) -> bytes:
    row = (width or bits // 8) * channels
    return struct.pack("<HHIIHH", coding, channels, rate, rate * row, row, bits)


def extensible(coding: int, bits: int, width: int = 0) -> bytes:
    return fmt(0xFFFE, (width or bits // 8) * 8, width=width) + struct.pack("<HHIH", 22, bits, 4, coding) + GUID


def riff(*chunks: bytes, kind: bytes = b"RIFF", size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return kind + struct.pack("<I", len(body) if size is None else size) + body


def read(path: Path) -> np.ndarray:
    with opened(path) as file:
        assert file.rate == 8000
        return file.mono(0, file.frames)


def given_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def pcm(bits: int) -> bytes:
    codes = np.rint(TONE * (2 ** (bits - 1) - 1)).astype("<i8")
    return codes.view(np.uint8).reshape(-1, 8)[:, : bits // 8].tobytes()


PAD = chunk(b"JUNK", bytes(28))
WRITTEN = {
    "plain": riff(chunk(b"fmt ", fmt()), chunk(b"data", PCM16)),
    "24 bits as sox writes them": riff(chunk(b"fmt ", extensible(1, 24)), chunk(b"data", pcm(24))),
    "20 bits of 24": riff(chunk(b"fmt ", extensible(1, 20, 3)), chunk(b"data", pcm(24))),
    "24 bits of 32": riff(chunk(b"fmt ", extensible(1, 24, 4)), chunk(b"data", pcm(32))),
    "32 bits, extensible": riff(chunk(b"fmt ", extensible(1, 32)), chunk(b"data", pcm(32))),
    "float32 as Audacity writes it": riff(
        chunk(b"fmt ", fmt(3, 32) + b"\0\0"), chunk(b"fact", struct.pack("<I", 4000)),
        chunk(b"data", TONE.astype("<f4").tobytes()),
    ),
    "float32, extensible": riff(chunk(b"fmt ", extensible(3, 32)), chunk(b"data", TONE.astype("<f4").tobytes())),
    "float64": riff(chunk(b"fmt ", fmt(3, 64)), chunk(b"data", TONE.astype("<f8").tobytes())),
    "a field recorder's bext, iXML, LIST before the data": riff(
        chunk(b"bext", bytes(603)), chunk(b"fmt ", fmt()), chunk(b"iXML", b"<x/>  "), chunk(b"LIST", b"INFOISFT" * 4),
        chunk(b"data", PCM16), chunk(b"LIST", b"INFO"),
    ),
    "an odd chunk without padding": riff(
        chunk(b"LIST", b"odd", pad=False), chunk(b"fmt ", fmt()), chunk(b"data", PCM16)
    ),
    "arecord in a pipe": riff(chunk(b"fmt ", fmt()), chunk(b"data", PCM16, 0x7FFFFF00), size=0x7FFFFF24),
    "sox in a pipe": riff(chunk(b"fmt ", fmt()), chunk(b"data", PCM16, 0x7FFFF000), size=0x7FFFF024),
    "ffmpeg in a pipe": riff(
        chunk(b"fmt ", fmt()), chunk(b"LIST", b"INFO"), chunk(b"data", PCM16, 0xFFFFFFFF), size=0xFFFFFFFF
    ),
    "a recorder whose battery was empty": riff(chunk(b"fmt ", fmt()), chunk(b"data", PCM16, 0), size=0),
    "RF64": riff(
        chunk(b"ds64", struct.pack("<QQQI", 8100, 8000, 4000, 0)), chunk(b"fmt ", fmt()),
        chunk(b"data", PCM16, 0xFFFFFFFF), kind=b"RF64", size=0xFFFFFFFF,
    ),
    "BW64": riff(
        chunk(b"ds64", struct.pack("<QQQI", 8100, 8000, 4000, 0)), PAD, chunk(b"fmt ", fmt()),
        chunk(b"data", PCM16, 0xFFFFFFFF), kind=b"BW64", size=0xFFFFFFFF,
    ),
    "room left for ds64": riff(PAD, chunk(b"fmt ", fmt()), chunk(b"data", PCM16)),
}  # fmt: skip


@pytest.mark.parametrize("how", WRITTEN)
def test_a_wav_is_read_without_the_extra_however_it_is_written(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert np.abs(read(given_file(tmp_path / "a.wav", WRITTEN[how])) - TONE).max() < 1e-4


def test_channels_are_averaged_a_block_at_a_time(tmp_path: Path) -> None:
    left = np.linspace(-0.5, 0.5, 3 * sound.BLOCK // 2)
    both = np.rint(np.stack([left, -left / 2], 1) * 32767).astype("<i2").tobytes()
    path = given_file(tmp_path / "a.wav", riff(chunk(b"fmt ", fmt(channels=2)), chunk(b"data", both)))
    assert np.abs(read(path) - left / 4).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "ULAW", 0.02), ("WAV", "ALAW", 0.02), ("WAV", "IMA_ADPCM", 0.05), ("FLAC", "PCM_16", 1e-4),
        ("FLAC", "PCM_24", 1e-6), ("W64", "PCM_24", 1e-6), ("RF64", "PCM_24", 1e-6), ("AIFF", "PCM_16", 1e-4),
        ("CAF", "FLOAT", 1e-6), ("AU", "PCM_16", 1e-4), ("WAVEX", "PCM_24", 1e-6), ("WAVEX", "FLOAT", 1e-6),
        ("OGG", "VORBIS", 0.1), ("OGG", "OPUS", 0.1), ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)  # fmt: skip
def test_what_a_library_writes_is_the_same_sound(tmp_path: Path, kind: str, subtype: str, error: float) -> None:
    soundfile = pytest.importorskip("soundfile", reason="SKIPPED: FLAC, Ogg, MP3 need soundfile, the extra [audio]")
    if kind not in soundfile.available_formats() or subtype not in soundfile.available_subtypes(kind):
        pytest.skip(f"SKIPPED: this libsndfile writes no {kind} {subtype}")
    soundfile.write(tmp_path / "a", np.stack([TONE, TONE], 1), 8000, format=kind, subtype=subtype)
    found = read(tmp_path / "a")
    assert np.abs(found[: len(TONE)] - TONE)[200:-200].max() < error
    with opened(tmp_path / "a") as file:  # the middle alone
        assert np.abs(file.mono(1000, 500) - found[1000:1500]).max() < max(1e-6, error / 2)


def test_what_sox_and_flac_write_is_the_same_sound(tmp_path: Path) -> None:
    if not (shutil.which("sox") and shutil.which("flac")):
        pytest.skip("SKIPPED: sox and flac are not installed (apt install sox flac)")
    plain = write_wav(tmp_path / "plain.wav", TONE, 8000)
    for options in (["-b", "24"], ["-b", "32"], ["-e", "floating-point"], ["-b", "8", "-e", "unsigned-integer"]):
        subprocess.run(["sox", "-D", plain, *options, tmp_path / "o.wav"], check=True, timeout=30)
        assert np.abs(read(tmp_path / "o.wav") - TONE).max() < (0.02 if "8" in options else 1e-4)
    piped = subprocess.run(["sox", plain, "-t", "wav", "-"], check=True, timeout=30, capture_output=True)
    (tmp_path / "piped.wav").write_bytes(piped.stdout)
    assert np.abs(read(tmp_path / "piped.wav") - TONE).max() < 1e-4
    pytest.importorskip("soundfile", reason="SKIPPED: FLAC needs soundfile, the extra [audio]")
    raw = ["--force-raw-format", "--endian=little", "--sign=signed", "--channels=1", "--bps=16", "--sample-rate=8000"]
    done = subprocess.run(["flac", "-s", *raw, "-c", "-"], input=PCM16, check=True, timeout=30, capture_output=True)
    with pytest.raises(DataError, match=r"streamed.flac does not say how long it is .*OUT.wav"):
        read(given_file(tmp_path / "streamed.flac", done.stdout))
    subprocess.run(["flac", "-s", "-f", plain, "-o", tmp_path / "o.flac"], check=True, timeout=30)
    assert np.abs(read(tmp_path / "o.flac") - TONE).max() < 1e-4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"fLaC" + bytes(100), "needs soundfile to be read .*fl-tiny.audio.*OUT.wav"),
        (riff(chunk(b"fmt ", fmt(7, 8)), chunk(b"data", bytes(100))), "needs soundfile"),
        (b"\0\0\0\x20ftypM4A " + bytes(100), "is an .m4a or .mp4.*ffmpeg"),
        (b"%PDF-1.4" + bytes(100), "of no kind that fl-tiny reads"),
        (riff(chunk(b"fmt ", fmt()), chunk(b"data", PCM16, 9000)), "ends before its header says"),
        (riff(chunk(b"fmt ", fmt())), "no chunk of data"),
        (riff(chunk(b"data", PCM16)), "no format"),
        (riff(chunk(b"fmt ", fmt(channels=40)), chunk(b"data", PCM16)), "40 channels"),
        (riff(chunk(b"fmt ", fmt(bits=24, width=2)), chunk(b"data", PCM16)), "24 bits in 2 bytes"),
        (riff(chunk(b"fmt ", fmt()), chunk(b"data", b"")), "no sound"),
        (riff(chunk(b"fmt ", fmt(3, 16)), chunk(b"data", PCM16)), "16 bits in 2 bytes"),
    ],
)
def test_what_is_not_read_is_named_with_a_way_out(
    tmp_path: Path, data: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises((DataError, EnvironmentFault), match=said) as fault:
        read(given_file(tmp_path / "rec.wav", data))
    assert "rec.wav" in fault.value.what and fault.value.hint and len(str(fault.value)) <= 400


def test_a_flac_that_declares_more_than_a_day_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="SKIPPED: FLAC needs soundfile, the extra [audio]")
    out = io.BytesIO()
    soundfile.write(out, TONE, 8000, format="FLAC")
    data = bytearray(out.getvalue())
    data[21] |= 0x0F  # STREAMINFO's 36 bits of total samples; Source: RFC 9639, 8.2
    with pytest.raises(DataError, match=r"declares .* frames"):
        read(given_file(tmp_path / "a.flac", bytes(data)))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
@given(which=st.sampled_from(sorted(WRITTEN)), data=st.data())
def test_a_damaged_recording_is_read_or_refused(tmp_path: Path, which: str, data: st.DataObject) -> None:
    raw = bytearray(WRITTEN[which])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 119))] = data.draw(st.integers(0, 255))
    try:
        with opened(given_file(tmp_path / "a.wav", bytes(raw[: data.draw(st.integers(1, len(raw)))]))) as file:
            assert len(file.mono(0, min(file.frames, 100_000))) <= 100_000
    except (DataError, EnvironmentFault) as fault:
        assert "a.wav" in fault.what


def test_every_pythons_wave_writes_what_is_read(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 3, 8000, 0, "NONE", ""))
        file.writeframes(pcm(24))
    assert np.abs(read(tmp_path / "a.wav") - TONE).max() < 1e-6
