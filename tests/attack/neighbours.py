# SPDX-License-Identifier: Apache-2.0
"""``neighbours.py FILE``: the devices of a swarm, each at a loopback address of its own, once a line comes by stdin."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import sys
from pathlib import Path
from typing import Any

from fl_tiny.lab.swarm import Board, Swarm, say

FIRST = 20  # 127.0.0.20 and on
HERE: contextvars.ContextVar[str] = contextvars.ContextVar("address")


class Bound(socket.socket):
    """A socket of the device that is at work."""

    def connect(self, address: Any) -> None:
        """From the device's own address."""
        if self.type == socket.SOCK_DGRAM:
            self.bind((HERE.get(), 0))
        super().connect(address)


async def one(swarm: Swarm, place: int) -> None:
    HERE.set(f"127.0.0.{FIRST + place}")
    await Board(swarm, place).run()


async def serve(swarm: Swarm) -> None:
    await asyncio.gather(*(one(swarm, place) for place in range(len(swarm.devices))))


def main() -> None:
    socket.socket = Bound  # type: ignore[misc]
    swarm = Swarm.read(Path(sys.argv[1]))
    say("ready")
    sys.stdin.readline()
    asyncio.run(serve(swarm))


if __name__ == "__main__":
    main()
