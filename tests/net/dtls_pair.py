# SPDX-License-Identifier: Apache-2.0
"""A server's table and client sessions joined in memory, with every datagram in the test's hands."""

from __future__ import annotations

import random
from collections.abc import Callable

from fl_tiny.net.dtls import Context, Session
from fl_tiny.net.sessions import Datagram, Event, Limits, Peer, Table

KEY = bytes(range(1, 33))
HOME = Peer("192.0.2.7", 40001)


def table(
    lookup: Callable[[str], bytes | None] | None = None, limits: Limits | None = None, constrained: bool = False
) -> Table:
    """A table that knows the identities "dev", "other" and "pair:x", all with KEY, at time 0."""
    known = dict.fromkeys(("dev", "other", "pair:x"), KEY)
    return Table(lookup or known.get, limits or Limits(), random.Random(5).randbytes, 0.0, constrained)


def client(identity: str = "dev", key: bytes = KEY) -> Session:
    """A client session whose ClientHello waits."""
    return Context.client(identity, key, first_retransmit_s=0.05).connect()


def sent(events: list[Event]) -> list[bytes]:
    """The datagrams among events."""
    return [e.data for e in events if isinstance(e, Datagram)]


def told(events: list[Event]) -> list[Event]:
    """The events that are no datagrams."""
    return [e for e in events if not isinstance(e, Datagram)]


def step(server: Table, session: Session, peer: Peer = HOME, now: float = 0.0) -> list[Event]:
    """Carry what waits in ``session`` to the server and its answers back, once; the server's other events."""
    events: list[Event] = []
    for data in session.take():
        events += server.receive(peer, data, now)
    for data in sent(events):
        session.receive(data)
    return told(events)


def converse(server: Table, session: Session, peer: Peer = HOME, now: float = 0.0) -> list[Event]:
    """``step`` until both are quiet."""
    events: list[Event] = []
    for _ in range(8):
        events += step(server, session, peer, now)
    return events
