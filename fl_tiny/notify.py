# SPDX-License-Identifier: Apache-2.0
"""What a daemon tells systemd: that it is ready, how it is doing, that its event loop still turns.

Systemd sets NOTIFY_SOCKET and WATCHDOG_USEC. Where they are not set, nothing is done.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping

log = logging.getLogger(__name__)


def tell(*facts: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send facts such as ``READY=1``; whether systemd was told. A lost one is no reason to end a daemon."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):  # also vsock:, for whole virtual machines
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace, unix(7)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
            speaker.setblocking(False)  # systemd may be busy; the loop must not wait for it
            speaker.sendto("\n".join(facts).encode(), address)
    except OSError as lost:
        log.debug("notify lost why=%r", str(lost))
        return False
    return True


def status(text: str) -> None:
    """What ``systemctl status`` shows; one line."""
    tell("STATUS=" + " ".join(text.split()))


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds after which systemd takes this process for hung, None without a watchdog."""
    mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())  # a child inherits its parent's
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if mine and text.isdecimal() and int(text) > 0 else None


@contextlib.asynccontextmanager
async def serving(text: str) -> AsyncIterator[None]:
    """READY on the way in, STOPPING on the way out, and between them signs of life for as long as the loop turns."""
    period = watchdog_s()
    pulse = asyncio.create_task(_pulse(period / 2)) if period else None  # half: sd_watchdog_enabled(3)
    tell("READY=1", f"STATUS={text}")
    try:
        yield
    finally:
        if pulse:
            pulse.cancel()
        tell("STOPPING=1")


async def _pulse(seconds: float) -> None:
    while True:
        tell("WATCHDOG=1")
        await asyncio.sleep(seconds)
