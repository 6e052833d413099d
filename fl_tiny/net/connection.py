# SPDX-License-Identifier: Apache-2.0
"""One DTLS session of a client: its endpoint, what aiocoap knows it by, and how many requests it still takes."""

from __future__ import annotations

from fl_tiny.net import transport
from fl_tiny.net.dtls import Context
from fl_tiny.net.endpoint import ClientEndpoint, Counters

EXCHANGE_LIFETIME_S = 247.0  # RFC 7252 section 4.8.2
MESSAGE_IDS = 60_000  # of 65,536 in that time and session


class Connection:
    """One session: its endpoint, and what aiocoap knows it by."""

    def __init__(
        self, address: tuple[str, int, int], dtls: Context, counters: Counters, interface: transport.Interface
    ) -> None:
        """Raises: OSError, when there is no way to ``address``."""
        self._interface = interface
        self._asked, self._since = 0, 0.0
        self.remote = transport.Remote(self._write, f"[{address[0]}]:{address[1]}")
        self.endpoint = ClientEndpoint(address, dtls, counters, self._received, self._ended)

    @property
    def is_open(self) -> bool:
        """Whether requests can go out on it."""
        return self.remote.open

    def may_ask(self, now: float) -> bool:
        """Whether one more message ID is free: a peer may answer from its table of duplicates if one comes twice."""
        if now >= self._since + EXCHANGE_LIFETIME_S:
            self._asked, self._since = 0, now
        self._asked += 1
        return self._asked <= MESSAGE_IDS

    def close(self, why: str) -> None:
        """End the session; what waits on it is told ``why``."""
        self.endpoint.close()
        self._ended(why)

    def _write(self, data: bytes) -> None:
        self.endpoint.send(data)

    def _received(self, data: bytes) -> None:
        self._interface.receive(self.remote, data)

    def _ended(self, why: str) -> None:
        self._interface.gone(self.remote, why)
