# SPDX-License-Identifier: Apache-2.0
"""A UDP relay on loopback that counts payload bytes between devices and their gateway, and does nothing else."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

HOST = "127.0.0.1"
LARGEST = 65_535
BUFFER = 1 << 20  # bytes: a burst of many devices waits in the kernel while this process draws its progress
AT_ONCE = 32  # datagrams of one socket before the others get their turn


class Relay:
    """Stands in for a gateway at ``port``; each client gets a source port of its own towards it, as behind a NAT."""

    def __init__(self) -> None:
        """Needs a running loop. Set ``gateway_port``, on loopback, before the first client speaks."""
        self.gateway_port = 0
        self.up_bytes = self.down_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._ways: dict[tuple[str, int], socket.socket] = {}
        self._front = self._socket()
        self.port: int = self._front.getsockname()[1]
        self._loop.add_reader(self._front, self._from_clients)

    @property
    def bytes(self) -> int:
        """UDP payload passed so far, both ways."""
        return self.up_bytes + self.down_bytes

    def close(self) -> None:
        """Give all sockets back: from now on whoever sends here is told that nobody listens."""
        for way in (self._front, *self._ways.values()):
            if way.fileno() >= 0:
                self._loop.remove_reader(way)
                way.close()
        self._ways.clear()

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        made.bind((HOST, 0))
        return made

    def _from_clients(self) -> None:
        with suppress(OSError):  # nothing more to read, or what a closed port answered: a UDP network loses that
            for _ in range(AT_ONCE):
                data, client = self._front.recvfrom(LARGEST)
                way = self._ways.get(client)
                if way is None:
                    way = self._ways[client] = self._socket()
                    self._loop.add_reader(way, self._from_gateway, client, way)
                self.up_bytes += len(data)
                way.sendto(data, (HOST, self.gateway_port))

    def _from_gateway(self, client: tuple[str, int], way: socket.socket) -> None:
        with suppress(OSError):
            for _ in range(AT_ONCE):
                data = way.recv(LARGEST)
                self.down_bytes += len(data)
                self._front.sendto(data, client)
