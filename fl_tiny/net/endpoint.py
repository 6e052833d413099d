# SPDX-License-Identifier: Apache-2.0
"""UDP sockets under DTLS: a server's one socket for all its peers, and a client's socket for one association."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from fl_tiny.net.dtls import NO_CIPHER, Context, PskLookup, Session
from fl_tiny.net.sessions import Association, Closed, Datagram, Event, Failed, Limits, Opened, Peer, Received, Table
from fl_tiny.net.udp import ANCILLARY_BYTES, destination, local_address, source
from fl_tiny.net.waiting import happens

LARGEST_BYTES = 8192  # of a datagram from a foreign stack; longer ones are dropped
BURST = 64  # datagrams taken before other tasks get a turn


@dataclass(slots=True)
class Counters:
    """What passed one endpoint since it was made."""

    datagrams_in: int = 0
    datagrams_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    handshakes_ok: int = 0
    handshakes_failed: int = 0
    no_cipher: int = 0  # of these, for want of a suite that both ends have
    cookies: int = 0  # ClientHellos answered without keeping anything
    dropped: int = 0  # datagrams nobody wanted, handshakes beyond a bound, messages that were no CoAP
    unsent: int = 0  # datagrams that the kernel refused


class Owner(Protocol):
    """Who owns a server's endpoint and is told what happens on it."""

    def opened(self, who: Association) -> None: ...
    def received(self, who: Association, data: bytes) -> None: ...
    def closed(self, who: Association, why: str) -> None: ...
    def failed(self, identity: str, wrong_key: bool) -> None: ...


class ServerEndpoint:
    """A server's UDP socket with its table of associations and its timer."""

    def __init__(self, sock: socket.socket, lookup: PskLookup, limits: Limits, constrained: bool, owner: Owner) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock, self._owner = sock, owner
        self._ip6 = sock.family == socket.AF_INET6
        self._table = Table(lookup, limits, secrets.token_bytes, self._loop.time(), constrained)
        self._timer: asyncio.TimerHandle | None = None
        self._counters = Counters()
        self._closed = False
        self.port: int = sock.getsockname()[1]
        self._loop.add_reader(sock, self._readable)

    @property
    def counters(self) -> Counters:
        """The present state of the counters, always the same object."""
        return self._counters

    @property
    def sessions(self) -> int:
        """Authenticated associations."""
        return len(self._table)

    @property
    def handshakes(self) -> int:
        """Handshakes in flight."""
        return self._table.handshakes

    def send(self, who: Association, data: bytes) -> None:
        """Protect and send one message; nothing if the association has ended."""
        if not self._closed:
            self._carry_out(self._table.send(who, data))

    def close_association(self, who: Association, why: str) -> None:
        """End an association and tell the peer."""
        if not self._closed:
            self._carry_out(self._table.close(who, why))

    def drop_identity(self, identity: str, why: str) -> None:
        """End everything that runs under one identity."""
        if not self._closed:
            self._carry_out(self._table.drop_identity(identity, why))

    def limit_sessions(self, most: int) -> None:
        """Change how many authenticated associations there may be; acts at the next handshake."""
        self._table.limits = replace(self._table.limits, sessions=most)

    def close(self) -> None:
        """Tell every peer, free everything. May be called twice."""
        if self._closed:
            return
        self._carry_out(self._table.close_all())
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(BURST):
            if not self._read_one():
                break
        self._arm()

    def _read_one(self) -> bool:
        """Whether there was a datagram."""
        if self._closed:
            return False
        try:
            data, ancillary, flags, address = self._sock.recvmsg(LARGEST_BYTES, ANCILLARY_BYTES)
        except OSError:  # nothing left, or an error of an earlier datagram
            return False
        self._counters.datagrams_in += 1
        self._counters.bytes_in += len(data)
        if flags & socket.MSG_TRUNC or not data:
            self._counters.dropped += 1
            return True
        peer = Peer(address[0], address[1], address[3] if self._ip6 else 0, local_address(ancillary))
        before = self._table.dropped
        self._tell(self._table.receive(peer, data, self._loop.time()))
        self._counters.dropped += self._table.dropped - before
        self._counters.cookies = self._table.cookies
        return True

    def _carry_out(self, events: list[Event]) -> None:
        self._tell(events)
        self._arm()

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Datagram(peer, data):
                    self._transmit(peer, data)
                case Received(who, data):
                    self._owner.received(who, data)
                case Opened(who):
                    self._counters.handshakes_ok += 1
                    self._owner.opened(who)
                case Closed(who, why):
                    self._owner.closed(who, why)
                case Failed(identity, wrong_key, why):
                    self._counters.handshakes_failed += 1
                    self._counters.no_cipher += why == NO_CIPHER
                    self._owner.failed(identity, wrong_key)

    def _transmit(self, peer: Peer, data: bytes) -> None:
        try:
            self._sock.sendmsg([data], source(peer, self._ip6), 0, destination(peer, self._ip6))
        except OSError:  # full buffer, no route: UDP may lose, the peer asks again
            self._counters.unsent += 1
            return
        self._counters.datagrams_out += 1
        self._counters.bytes_out += len(data)

    def _arm(self) -> None:
        """Have the timer run no later than the table's deadline; it may run earlier."""
        when = None if self._closed else self._table.deadline()
        if when is None or (self._timer is not None and self._timer.when() <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self._closed:
            self._carry_out(self._table.tick(self._loop.time()))


class ClientEndpoint:
    """A client's socket, connected to one address, with one DTLS session; a new session takes a new endpoint."""

    def __init__(
        self,
        address: tuple[str, int, int],
        context: Context,
        counters: Counters,
        received: Callable[[bytes], None],
        ended: Callable[[str], None],
    ) -> None:
        """``address`` is host, port and scope. Raises: OSError, when there is no way to it."""
        self._loop = asyncio.get_running_loop()
        host, port, scope = address
        ip6 = ":" in host
        self._sock = socket.socket(socket.AF_INET6 if ip6 else socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        try:
            self._sock.connect((host, port, 0, scope) if ip6 else (host, port))
        except OSError:
            self._sock.close()
            raise
        self._counters, self._received, self._ended = counters, received, ended
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()  # the handshake moved, or an ICMP error came
        self.heard = self.refused = 0.0  # when the last authenticated record and the last ICMP error came
        self.session: Session = context.connect()
        self._loop.add_reader(self._sock, self._readable)
        self._flush()

    async def handshake(self, until: float, patience_s: float) -> bool:
        """Whether the session was authenticated by ``until``, or ``patience_s`` after a first ICMP error."""
        first_refusal = 0.0
        while not (self.session.established or self.session.ended):
            first_refusal = first_refusal or self.refused
            end = min(until, first_refusal + patience_s) if first_refusal else until
            self._changed.clear()
            await happens(self._changed, max(0.0, end - self._loop.time()))
            if self._loop.time() >= end:
                break
        return self.session.established and not self.session.ended

    def send(self, data: bytes) -> None:
        """Protect and send one message; nothing if the session has ended."""
        self.session.send(data)
        self._flush()

    def close(self) -> None:
        """Send a close_notify, if there is a session, and free everything. May be called twice."""
        if self._sock.fileno() < 0:
            return
        self.session.shut_down()
        self._transmit(self.session.take())
        self.session.close()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._changed.set()

    def _readable(self) -> None:
        for _ in range(BURST):
            if self._sock.fileno() < 0:
                return
            try:
                data = self._sock.recv(LARGEST_BYTES)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error is forgeable: a hint, not an end
                self.refused = self._loop.time()
                self._changed.set()
                return
            self._counters.datagrams_in += 1
            self._counters.bytes_in += len(data)
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        fresh = not self.session.established
        messages = self.session.receive(data)
        fresh = fresh and self.session.established
        if messages or fresh or (self.session.ended and self.session.established):
            self.heard = self._loop.time()
        self._flush()
        for message in messages:
            self._received(message)
        self._changed.set()
        if self.session.ended:
            self._ended(self.session.ended)

    def _flush(self) -> None:
        self._transmit(self.session.take())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not (self.session.established or self.session.ended):
            self._timer = self._loop.call_later(self.session.retransmit_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.session.retransmit() or self.session.ended:
            self._flush()
            self._changed.set()
        else:
            self._timer = self._loop.call_later(0.05, self._tick)  # OpenSSL's clock is a little behind ours

    def _transmit(self, datagrams: list[bytes]) -> None:
        for data in datagrams:
            try:
                self._sock.send(data)
            except BlockingIOError:
                self._counters.unsent += 1
            except OSError:
                self.refused = self._loop.time()
                self._counters.unsent += 1
            else:
                self._counters.datagrams_out += 1
                self._counters.bytes_out += len(data)
