# SPDX-License-Identifier: Apache-2.0
"""Feed, send, time, close and replace sessions in any order; a child process, since it looks for a crash."""

from __future__ import annotations

import random
import sys

from dtls_pair import KEY
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from fl_tiny.net.dtls import Context, Session
from fl_tiny.net.sessions import Association, Closed, Datagram, Event, Limits, Opened, Peer, Table

PEERS = [Peer("192.0.2.1", 1), Peer("192.0.2.1", 2), Peer("2001:db8::1", 3)]
ACTS = st.sampled_from(("hello", "feed", "swap", "send", "answer", "tick", "close", "drop", "damage", "hang up"))


class Storm:
    """Three addresses, each with a client that may be replaced at any time, and what is in the air."""

    def __init__(self) -> None:
        self.now = 0.0
        self.revoke = False
        self.server = Table(self.lookup, Limits(sessions=2, handshakes_per_s=1e6), random.Random(1).randbytes, 0.0)
        self.clients: dict[Peer, Session] = {}
        self.contexts = [Context.client("a", KEY), Context.client("b", KEY), Context.client("a", b"wrong" * 4)]
        self.air: list[tuple[Peer, bytes]] = []
        self.ever: list[Association] = []

    def lookup(self, identity: str) -> bytes | None:
        if self.revoke:  # from inside OpenSSL
            self.carry(self.server.drop_identity(identity, "revoked"))
            for session in list(self.server._context.sessions.values()):
                session.close()
            raise KeyError(identity)
        return KEY

    def carry(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Datagram) and event.peer in self.clients:
                self.clients[event.peer].receive(event.data)
            elif isinstance(event, Opened):
                self.ever.append(event.who)
            elif isinstance(event, Closed):
                assert event.who.session.pointer is None
        for peer, session in self.clients.items():
            self.air += [(peer, data) for data in session.take()]

    def act(self, name: str, draw: st.DataObject) -> None:
        peer = draw.draw(st.sampled_from(PEERS))
        if name == "hello":
            if peer in self.clients and draw.draw(st.booleans()):
                self.clients[peer].close()
            self.clients[peer] = draw.draw(st.sampled_from(self.contexts)).connect()
            self.carry([])
        elif name == "feed":
            for _ in range(min(len(self.air), draw.draw(st.integers(1, 6)))):
                who, data = self.air.pop(0)
                self.carry(self.server.receive(who, data, self.now))
        elif name == "swap":
            self.air = [(draw.draw(st.sampled_from(PEERS)), data) for _, data in reversed(self.air[-6:])]
        elif name == "damage" and self.air:
            who, data = self.air[-1]
            self.carry(self.server.receive(who, data[: draw.draw(st.integers(0, len(data)))], self.now))
        elif name == "send" and peer in self.clients:
            self.clients[peer].send(b"up")
            self.carry([])
        elif name in ("answer", "close") and self.ever:
            who = draw.draw(st.sampled_from(self.ever))
            self.carry(self.server.send(who, b"down") if name == "answer" else self.server.close(who, "asked"))
        elif name == "tick":
            self.now += draw.draw(st.sampled_from((0.01, 1.1, 16.0, 301.0)))
            self.carry(self.server.tick(self.now))
            for session in self.clients.values():
                session.retransmit()
        elif name == "drop":
            self.carry(self.server.drop_identity(draw.draw(st.sampled_from("ab")), "revoked"))
        elif name == "hang up" and peer in self.clients:
            self.clients[peer].shut_down()
            self.carry([])
        self.revoke = draw.draw(st.integers(0, 19)) == 0

    def end(self) -> None:
        self.carry(self.server.close_all())
        for who in self.ever:
            assert who.session.pointer is None
            assert self.server.send(who, b"late") == []
        for context in self.contexts:
            context.close()


def main() -> None:
    @seed(20)
    @settings(max_examples=int(sys.argv[1]), deadline=None, database=None)
    @given(st.lists(ACTS, min_size=20, max_size=80), st.data())
    def run(acts: list[str], draw: st.DataObject) -> None:
        storm = Storm()
        storm.act("hello", draw)
        for name in acts:
            storm.act("feed", draw)
            storm.act(name, draw)
        storm.end()

    run()


if __name__ == "__main__":
    main()
