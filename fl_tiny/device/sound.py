# SPDX-License-Identifier: Apache-2.0
"""A recording opened: our own reader of PCM and float WAV, and soundfile, an extra, for what else recorders write."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.files import open_plain

SUFFIXES = frozenset(
    {".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"}
    | {".au", ".caf"}
)
MAX_FILE_BYTES = 4 << 30  # what a WAV without RF64 can hold
MAX_FRAMES = 1 << 31  # 12 hours at 48 kHz: a packed file may declare any number
MAX_CHANNELS, MAX_RATE = 32, 192_000  # guess: beyond any recorder
MAX_CHUNKS = 1000
UNCOUNTED = 1 << 62  # libsndfile's number of frames where a stream does not say it
BLOCK = 1 << 16  # frames in memory at a time, all channels of them
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # WAVE_FORMAT_*; Source: Microsoft's mmreg.h
SUBTYPE = bytes.fromhex("000000001000800000aa00389b71")  # of EXTENSIBLE, after the two bytes of its format
UNKNOWN = 0x7FFF0000  # a size from here on is that of a recorder that could not know it: arecord, sox, ffmpeg in a pipe
PACKED = (b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"riff", b"RIFF", b"RIFX", b"RF64", b"BW64")
AS_WAV = "sox IN -e signed-integer -b 16 OUT.wav, or ffmpeg -i IN OUT.wav"
EXTRA = "python3-soundfile of Debian, or pip install 'fl-tiny[audio]'; or ffmpeg -i IN OUT.wav"
DAMAGED = (EOFError, struct.error, RuntimeError, ValueError, OverflowError, ZeroDivisionError, OSError)


class Sound(Protocol):
    """An open recording."""

    @property
    def rate(self) -> int: ...
    @property
    def frames(self) -> int: ...
    def mono(self, first: int, frames: int) -> NDArray[np.float64]:
        """``frames`` numbers from ``first`` on, channels averaged, full scale 1. Raises: one of DAMAGED."""
        ...


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Sound]:
    """A recording for reading, its header within our bounds. Raises: DataError for what goes wrong inside.

    Raises: EnvironmentFault without soundfile for a file that needs it.
    """
    with open_plain(path, MAX_FILE_BYTES) as file:
        sound = None
        try:
            sound = _wav(file) or _other(file, path)
            yield sound
        except DAMAGED as fault:
            raise DataError(f"{path} is no recording that can be read: {str(fault)[:120]}", hint=AS_WAV) from fault
        finally:
            if isinstance(sound, Other):
                sound.file.close()


@dataclass(frozen=True, slots=True)
class Wav:
    """Where a WAV file's numbers lie: ``frames`` of ``channels`` from byte ``start`` on, ``width`` bytes each."""

    file: IO[bytes]
    rate: int
    channels: int
    width: int
    is_float: bool
    start: int
    frames: int

    def mono(self, first: int, frames: int) -> NDArray[np.float64]:
        """As ``Sound.mono``."""
        row = self.width * self.channels
        self.file.seek(self.start + first * row)
        mixed = np.empty(frames)
        for at in range(0, frames, BLOCK):
            part = mixed[at : at + BLOCK]
            data = self.file.read(len(part) * row)
            if len(data) < len(part) * row:
                raise EOFError("it ends before its header says")
            part[:] = self._real(data).reshape(-1, self.channels).mean(axis=1)
        return mixed

    def _real(self, data: bytes) -> NDArray[np.float64]:
        """Numbers in -1..1: a byte is unsigned, more are signed, little endian; floats are what they are."""
        if self.is_float:
            return np.frombuffer(data, f"<f{self.width}").astype(np.float64)
        if self.width == 1:
            return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
        if self.width == 3:
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            return wide.view("<i4")[:, 0].astype(np.float64) / 2**31
        return np.frombuffer(data, f"<i{self.width}").astype(np.float64) / 2.0 ** (8 * self.width - 1)


def _wav(file: IO[bytes]) -> Wav | None:
    """The WAV that ``file`` holds; None: it is of another kind, or of a coding that is not ours. Raises: DAMAGED.

    Source: Microsoft's RIFF and WAVEFORMATEXTENSIBLE; EBU Tech 3306 and ITU-R BS.2088 for RF64 and BW64.
    """
    end = file.seek(0, 2)
    file.seek(0)
    kind, size, wave = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if kind not in (b"RIFF", b"RF64", b"BW64") or wave != b"WAVE":
        return None
    layout, long = b"", None
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        name, length = struct.unpack("<4sI", head)
        at = file.tell()
        if name == b"data":
            return _laid_out(file, layout, at, _length(length, long, end - at, is_open=size + 8 <= at))
        if name == b"ds64":
            long = struct.unpack("<8xQ", file.read(16))[0]
        elif name == b"fmt ":
            layout = file.read(min(length, 40))
        file.seek(at + length)
        if length % 2 and file.read(1) not in (b"", b"\0"):  # some writers leave the padding out
            file.seek(at + length)
    raise EOFError("it has no chunk of data")


def _length(said: int, long: int | None, rest: int, *, is_open: bool) -> int:
    """Bytes of data: as the header says, or the ``rest`` of the file where nobody could put the length in.

    long: what ds64 says.   is_open: the whole file's length was not put in either.   Raises: EOFError.
    """
    if said == 0xFFFFFFFF and long is not None:
        said = long
    elif (said >= UNKNOWN and said > rest) or (said == 0 and is_open):
        return rest
    if said > rest:
        raise EOFError("it ends before its header says; copy it again")
    return said


def _laid_out(file: IO[bytes], layout: bytes, start: int, length: int) -> Wav | None:
    if len(layout) < 16:
        raise ValueError("it has no format")
    coding, channels, rate, _, row, bits = struct.unpack("<HHIIHH", layout[:16])
    if coding == EXTENSIBLE and len(layout) == 40 and layout[26:] == SUBTYPE:
        coding = struct.unpack("<H", layout[24:26])[0]
    width = row // max(1, channels)
    widths = {PCM: (1, 2, 3, 4), FLOAT: (4, 8)}.get(coding)
    if widths is None:
        return None
    _check(channels, rate)
    if width not in widths or row != width * channels or bits > 8 * width:  # fewer bits stand at the upper end
        raise ValueError(f"{bits} bits in {row} bytes of {channels} channels")
    return Wav(file, rate, channels, width, coding == FLOAT, start, _some(length // row))


@dataclass(frozen=True, slots=True)
class Other:
    """A recording that libsndfile reads."""

    file: Any
    rate: int
    frames: int

    def mono(self, first: int, frames: int) -> NDArray[np.float64]:
        """As ``Sound.mono``."""
        self.file.seek(first)
        mixed = np.empty(frames)
        for at in range(0, frames, BLOCK):
            part = mixed[at : at + BLOCK]
            found = self.file.read(len(part), dtype="float64", always_2d=True)
            if len(found) < len(part):
                raise EOFError("it ends before its header says")
            part[:] = found.mean(axis=1)
        return mixed


def _other(file: IO[bytes], path: Path) -> Other:
    file.seek(0)
    head = file.read(12)
    if head[4:8] == b"ftyp":
        raise DataError(f"{path} is an .m4a or .mp4, which is not read", hint="ffmpeg -i IN.m4a OUT.wav")
    is_mp3 = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    if not head.startswith(PACKED) and not is_mp3:  # no others of libsndfile's decoders see a byte
        raise ValueError("it is of no kind that fl-tiny reads")
    try:
        import soundfile  # noqa: PLC0415 - an extra, for recordings that are no plain WAV
    except (ImportError, OSError) as cause:  # OSError: without libsndfile
        raise EnvironmentFault(f"{path} needs soundfile to be read", hint=EXTRA) from cause
    file.seek(0)
    found = soundfile.SoundFile(file)  # not its descriptor: libsndfile 1.2.0 closes that when it refuses
    _check(found.channels, found.samplerate)
    frames = found.frames
    if frames > UNCOUNTED:
        raise DataError(f"{path} does not say how long it is", hint="it went through a pipe: ffmpeg -i IN OUT.wav")
    if frames > MAX_FRAMES:
        raise DataError(f"{path} declares {frames} frames, more than {MAX_FRAMES}", hint="cut it into parts")
    return Other(found, found.samplerate, _some(frames))


def _check(channels: int, rate: int) -> None:
    if not (1 <= channels <= MAX_CHANNELS and 1 <= rate <= MAX_RATE):
        raise ValueError(f"{channels} channels at {rate} Hz")


def _some(frames: int) -> int:
    if frames < 1:
        raise ValueError("it holds no sound")
    return frames
