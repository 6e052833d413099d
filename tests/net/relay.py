# SPDX-License-Identifier: Apache-2.0
"""A UDP relay in user space that loses, repeats, reorders, delays, corrupts and rebinds."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Faults:
    """Probabilities of each fault for each datagram, in both directions, and one-way delay."""

    lose: float = 0.0
    repeat: float = 0.0
    corrupt: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0  # more than the gap between datagrams reorders them
    larger_than: int = 65_536  # an MTU black hole


class Relay:
    """One client's way to a server; ``port`` stands in for the server's."""

    def __init__(self, server_port: int, faults: Faults, seed: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(seed)
        self._server_port = server_port
        self._client: tuple[str, int] | None = None
        self.faults = faults
        self.passed = self.lost = 0
        self._inner, self._outer = self._socket(self._from_client), self._socket(self._from_server)
        self.port: int = self._inner.getsockname()[1]

    def rebind(self) -> None:
        """Reach the server from another source port, as a NAT does that forgot."""
        self._end(self._outer)
        self._outer = self._socket(self._from_server)

    def close(self) -> None:
        self._end(self._inner)
        self._end(self._outer)

    def _socket(self, readable: Callable[[], None]) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.bind(("127.0.0.1", 0))
        self._loop.add_reader(made, readable)
        return made

    def _end(self, ended: socket.socket) -> None:
        self._loop.remove_reader(ended)
        ended.close()

    def _from_client(self) -> None:
        data, client = self._inner.recvfrom(65_536)
        if client != self._client and self._client is not None:
            self.rebind()  # as a NAT: what the server has for the old socket must not reach the new one
        self._client = client
        self._pass(data, lambda d: self._outer.sendto(d, ("127.0.0.1", self._server_port)))

    def _from_server(self) -> None:
        try:
            data = self._outer.recv(65_536)
        except OSError:
            return
        client = self._client
        if client is not None:
            self._pass(data, lambda d: self._inner.sendto(d, client))

    def _pass(self, data: bytes, send: Callable[[bytes], int]) -> None:
        chance, faults = self._random.random, self.faults
        if chance() < faults.lose or len(data) > faults.larger_than:
            self.lost += 1
            return
        if chance() < faults.corrupt:
            at = self._random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]
        for _ in range(2 if chance() < faults.repeat else 1):
            self.passed += 1
            self._loop.call_later(faults.delay_s + chance() * faults.jitter_s, self._send, send, data)

    def _send(self, send: Callable[[bytes], int], data: bytes) -> None:
        if self._inner.fileno() >= 0:
            send(data)
