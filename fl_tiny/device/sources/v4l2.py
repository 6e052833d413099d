# SPDX-License-Identifier: Apache-2.0
"""A camera by V4L2: frames in YUYV or MJPEG, streamed through two buffers that are mapped.

Source: the kernel's userspace-api/media/v4l, "Streaming I/O (Memory Mapping)"; linux/videodev2.h for every number.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_tiny.errors import EnvironmentFault

CAPTURE, MMAP, STREAMING, DEVICE_CAPS = 1, 1, 0x04000000, 0x80000000
CAPABILITY = struct.Struct("@16s32s32s6I")
FORMAT = struct.Struct("@I0L12I152x")  # v4l2_format with v4l2_pix_format; the union is 200 bytes
REQUEST = struct.Struct("@5I")
BUFFER = struct.Struct("@5I0l2l2I8s2IL3I0L")  # v4l2_buffer with its timecode, 16 bytes
FORMATS = ("MJPG", "YUYV")
BUFFERS = 2  # so that a frame is at most one old
FRAME_S = 5.0  # guess: a camera that wakes up takes one
Ioctl = Callable[[int, int, Any], int]


def _number(direction: int, number: int, size: int) -> int:
    """An ioctl of 'V'. Source: asm-generic/ioctl.h."""
    return direction << 30 | size << 16 | ord("V") << 8 | number


QUERYCAP = _number(2, 0, CAPABILITY.size)
S_FMT = _number(3, 5, FORMAT.size)
REQBUFS = _number(3, 8, REQUEST.size)
QUERYBUF, QBUF, DQBUF = (_number(3, number, BUFFER.size) for number in (9, 15, 17))
STREAMON, STREAMOFF = (_number(1, number, 4) for number in (18, 19))


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as the camera gave it. stride: bytes a line, of YUYV."""

    format: str
    width: int
    height: int
    stride: int
    data: bytes


class Camera:
    """An opened camera that streams. Raises: EnvironmentFault, also when it is no camera that we can use."""

    def __init__(self, path: Path, width: int, height: int, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._path, self._ioctl = path, ioctl
        self._maps: list[mmap.mmap] = []
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as fault:
            raise EnvironmentFault(
                f"{path}: {fault.strerror}", hint="is a camera there, and the group video?"
            ) from fault
        try:
            self._set_up(width, height)
        except OSError as fault:
            self.close()
            raise EnvironmentFault(f"{path}: {fault.strerror}", hint="does another program use it?") from fault
        except BaseException:
            self.close()
            raise

    def _set_up(self, width: int, height: int) -> None:
        about = CAPABILITY.unpack(self._call(QUERYCAP, bytes(CAPABILITY.size)))
        able = about[5] if about[4] & DEVICE_CAPS else about[4]
        if not (able & CAPTURE and able & STREAMING):
            raise EnvironmentFault(f"{self._path} captures no pictures", hint="another /dev/video may be the camera")
        for name in FORMATS:
            wanted = FORMAT.pack(CAPTURE, width, height, int.from_bytes(name.encode(), "little"), 1, *[0] * 8)
            _, self._width, self._height, found, _, self._stride, *_ = FORMAT.unpack(self._call(S_FMT, wanted))
            self._format = found.to_bytes(4, "little").decode("latin-1")
            if self._format in FORMATS:
                break
        else:
            raise EnvironmentFault(f"{self._path} gives {self._format!r}; {' and '.join(FORMATS)} are read")
        count = REQUEST.unpack(self._call(REQBUFS, REQUEST.pack(BUFFERS, CAPTURE, MMAP, 0, 0)))[0]
        for index in range(count):
            found = BUFFER.unpack(self._call(QUERYBUF, self._buffer(index)))
            self._maps.append(mmap.mmap(self._handle, found[13], offset=found[12]))
            self._call(QBUF, self._buffer(index))
        self._call(STREAMON, struct.pack("i", CAPTURE))

    def frame(self) -> Frame:
        """A frame that was taken after this was called, or at most one before. Raises: EnvironmentFault."""
        try:
            for _ in self._maps:  # what lay there since the last time
                if self._taken() is None:
                    break
            while select.select([self._handle], [], [], FRAME_S)[0]:
                data = self._taken()
                if data:
                    return Frame(self._format, self._width, self._height, self._stride, data)
        except OSError as fault:
            raise EnvironmentFault(f"{self._path}: {fault.strerror}", hint="was the camera unplugged?") from fault
        raise EnvironmentFault(f"{self._path} gave no frame in {FRAME_S:.0f} s")

    def close(self) -> None:
        """Give the camera back."""
        for each in self._maps:
            each.close()
        os.close(self._handle)

    def _taken(self) -> bytes | None:
        """What a filled buffer holds, given back then; nothing of a damaged frame. None: none is filled."""
        try:
            found = BUFFER.unpack(self._call(DQBUF, self._buffer(0)))
        except BlockingIOError:
            return None
        index, used, flags = found[0], found[2], found[3]
        damaged = flags & 0x40  # V4L2_BUF_FLAG_ERROR
        data = b"" if damaged else bytes(self._maps[index][:used])
        self._call(QBUF, self._buffer(index))
        return data

    def _buffer(self, index: int) -> bytes:
        return BUFFER.pack(index, CAPTURE, *[0] * 7, bytes(8), 0, MMAP, 0, 0, 0, 0)

    def _call(self, number: int, data: bytes) -> bytes:
        argument = bytearray(data)
        while True:
            try:
                self._ioctl(self._handle, number, argument)
            except OSError as fault:
                if fault.errno == errno.EINTR:
                    continue
                raise
            return bytes(argument)
