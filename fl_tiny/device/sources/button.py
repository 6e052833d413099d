# SPDX-License-Identifier: Apache-2.0
"""A button on a GPIO line that is pulled up, and whether it is pressed.

Source: linux/gpio.h, version 2 of its character device, Linux 5.10.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_tiny.errors import EnvironmentFault

LINE_REQUEST = struct.Struct("@64I32sQI5I240x2I5Ii")  # gpio_v2_line_request
VALUES = struct.Struct("@QQ")
GET_LINE = 3 << 30 | LINE_REQUEST.size << 16 | 0xB4 << 8 | 0x07
GET_VALUES = 3 << 30 | VALUES.size << 16 | 0xB4 << 8 | 0x0E
ACTIVE_LOW, INPUT, PULL_UP = 1 << 1, 1 << 2, 1 << 8


class Button:
    """The line ``CHIP:LINE``, as ``gpiochip0:17``. Raises: EnvironmentFault."""

    def __init__(
        self, where: str, ioctl: Callable[[int, int, Any], int] = fcntl.ioctl, dev: Path = Path("/dev")
    ) -> None:
        self._where, self._ioctl = where, ioctl
        chip, _, line = where.partition(":")
        flags = ACTIVE_LOW | INPUT | PULL_UP
        request = bytearray(LINE_REQUEST.pack(int(line), *[0] * 63, b"fl-tiny", flags, *[0] * 6, 1, 0, *[0] * 5, 0))
        try:
            handle = os.open(dev / chip, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._ioctl(handle, GET_LINE, request)
            finally:
                os.close(handle)
        except OSError as fault:
            raise EnvironmentFault(f"button {where}: {fault.strerror}", hint="the group gpio, a free line?") from fault
        self._line = LINE_REQUEST.unpack(request)[-1]

    def pressed(self) -> bool:
        """Is it down now? Raises: EnvironmentFault."""
        values = bytearray(VALUES.pack(0, 1))
        try:
            self._ioctl(self._line, GET_VALUES, values)
        except OSError as fault:
            raise EnvironmentFault(f"button {self._where}: {fault.strerror}") from fault
        return bool(VALUES.unpack(values)[0] & 1)

    def close(self) -> None:
        """Give the line back."""
        os.close(self._line)
