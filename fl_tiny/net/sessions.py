# SPDX-License-Identifier: Apache-2.0
"""A DTLS server's associations: who may have one, for how long, and which gives way to which; no socket and no clock.

The rules are those of docs/protocol.md, "DTLS": no state before a cookie came back and its address has a share left, a
new handshake from a known address runs beside the old association until it is authenticated, everything is bounded.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fl_tiny.net.door import Cookies, Shares, prefix_of
from fl_tiny.net.dtls import PAIRING, Context, PskLookup, Session
from fl_tiny.net.records import HANDSHAKE, Hello, epoch, read_hello, records

HANDSHAKE_S = 15.0
GRACE_S = 3.0  # a handshake does not give way to another of its own address before (guess: a lost flight, and again)
_EARLY_S = 0.05  # our timer ran before OpenSSL's clock agreed: ask again after this


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server spends on its peers."""

    handshakes: int = 256  # in flight; half of them from one address
    handshakes_per_s: float = 50.0  # new ones per /24 or /64; see ``Shares`` for one address
    pairings_per_s: float = 1.0  # handshakes on pairing identities per /24 or /64
    sessions: int = 64
    idle_s: float = 300.0
    requests_per_s: float = 500.0  # of one identity; more at once, so that the longest body passes at full speed


@dataclass(frozen=True, slots=True)
class Peer:
    """One path: the address a datagram came from, and the local address it came to."""

    host: str
    port: int
    scope: int = 0  # interface index of a link-local IPv6 address
    local: bytes = b""  # packed local address; empty when unknown

    @property
    def key(self) -> bytes:
        """What a cookie is bound to."""
        return f"{self.host} {self.port} {self.scope} ".encode() + self.local


@dataclass(slots=True, eq=False)
class Association:
    """A session and the path it runs on. Compared by identity."""

    peer: Peer
    session: Session
    random: bytes  # of the ClientHello that opened it
    born: float
    heard: float  # when the last authenticated record came
    retransmit_at: float
    deaf_until: float = 0.0  # what comes before is not even decrypted: its peer does not wait as it was told
    tried: bool = False  # a protected record came before the handshake was complete


@dataclass(frozen=True, slots=True)
class Datagram:
    """Send this."""

    peer: Peer
    data: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer has shown that it holds the key of ``who.session.identity``."""

    who: Association


@dataclass(frozen=True, slots=True)
class Received:
    """One message of an authenticated peer."""

    who: Association
    data: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """An authenticated association has ended and its session is freed."""

    who: Association
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A handshake came to nothing. ``wrong_key``: the identity was known, what came protected was not by its key."""

    identity: str
    wrong_key: bool
    why: str = field(default="", compare=False)


Event = Datagram | Opened | Received | Closed | Failed


class Table:
    """Every association of one server socket: datagrams, messages and times in, events out."""

    def __init__(
        self,
        lookup: PskLookup,
        limits: Limits,
        random_bytes: Callable[[int], bytes],
        now: float,
        constrained_peers: bool = False,
    ) -> None:
        """``now`` is in seconds of the caller's monotonic clock, here and below."""
        self.limits = limits
        self.cookies = 0  # ClientHellos answered without keeping anything
        self.dropped = 0  # datagrams that nobody wanted, and handshakes beyond a bound
        self._lookup = lookup
        self._context = Context.server(self._find_key, constrained_peers)
        self._live: OrderedDict[Peer, Association] = OrderedDict()  # least recently heard first
        self._candidates: dict[Peer, Association] = {}  # oldest first
        self._cookies = Cookies(random_bytes, now)
        self._shares, self._pairings = Shares(limits.handshakes_per_s), Shares(limits.pairings_per_s)
        self._now = now
        self._host = ""  # of the handshake that OpenSSL is at work on

    def __len__(self) -> int:
        return len(self._live)

    @property
    def handshakes(self) -> int:
        """Handshakes in flight."""
        return len(self._candidates)

    @property
    def refusals(self) -> int:
        """Exceptions that the key look-up raised; each refused a handshake."""
        return self._context.refusals

    def receive(self, peer: Peer, datagram: bytes, now: float) -> list[Event]:
        """What one datagram led to."""
        self._now = now
        candidate, live = self._candidates.get(peer), self._live.get(peer)
        if live is not None and now < live.deaf_until and candidate is None and datagram[:1] != HANDSHAKE:
            self.dropped += 1
            return []
        hello = read_hello(datagram)
        if hello and not any(known and known.random == hello.random for known in (candidate, live)):
            return self._knock(peer, datagram, hello)
        events: list[Event] = []
        protected = b"".join(r for r in records(datagram) if epoch(r) > 0)
        if candidate is not None:
            candidate.tried |= bool(protected)
            events += self._feed_candidate(candidate, datagram)
        if live is not None and protected and self._live.get(peer) is live:
            events += self._feed_live(live, protected)
        if candidate is None and (live is None or not protected):
            self.dropped += 1
        return events

    def send(self, who: Association, message: bytes) -> list[Event]:
        """Protect one message. Nothing, when the association has ended."""
        who.session.send(message)
        return [*self._sent(who), *self._delivered(who, [])]

    def close(self, who: Association, why: str) -> list[Event]:
        """End an association and tell the peer."""
        if self._live.get(who.peer) is not who:
            return []
        who.session.shut_down()
        return [*self._sent(who), *self._remove(who, why)]

    def drop_identity(self, identity: str, why: str) -> list[Event]:
        """End everything that runs under ``identity``, handshakes too."""
        for who in [c for c in self._candidates.values() if c.session.identity == identity]:
            self._forget(who)
        return [e for who in self._of(identity) for e in self.close(who, why)]

    def close_all(self) -> list[Event]:
        """End every association and free the context; the table is of no further use."""
        for who in list(self._candidates.values()):
            self._forget(who)
        events = [e for who in list(self._live.values()) for e in self.close(who, "server closed")]
        self._context.close()
        return events

    def tick(self, now: float) -> list[Event]:
        """What the passing of time led to."""
        self._now = now
        events: list[Event] = []
        for who in list(self._candidates.values()):
            if now >= who.born + HANDSHAKE_S:
                self._forget(who)
                events.append(Failed(who.session.identity, bool(who.session.identity) and who.tried))
            elif now >= who.retransmit_at:
                again = who.session.retransmit()
                who.retransmit_at = now + (who.session.retransmit_s if again else _EARLY_S)
                events += self._sent(who)
                if who.session.ended:
                    self._forget(who)
                    events.append(Failed(who.session.identity, wrong_key=False))
        while self._live:
            who = next(iter(self._live.values()))
            if now < who.heard + self.limits.idle_s:
                break
            events += self.close(who, "idle")
        return events

    def deadline(self) -> float | None:
        """Call ``tick`` no later than this."""
        times = [min(c.born + HANDSHAKE_S, c.retransmit_at) for c in self._candidates.values()]
        if self._live:
            times.append(next(iter(self._live.values())).heard + self.limits.idle_s)
        return min(times, default=None)

    def _knock(self, peer: Peer, datagram: bytes, hello: Hello) -> list[Event]:
        """A ClientHello of nobody who is known here: the cheap questions first, OpenSSL last."""
        if not self._cookies.holds(peer.key, hello, self._now):
            self.cookies += 1
            return [Datagram(peer, self._cookies.question(peer.key, hello, self._now))]
        replaced = self._candidates.get(peer)
        if (
            self._cookies.spent(hello)
            or not self._shares.admits(peer.host, self._now)
            or not (replaced or self._has_room(peer.host))
        ):
            self.dropped += 1  # its cookie is good for when there is room
            return []
        self._cookies.spend(hello, self._now)
        session = self._context.accept(datagram)
        if session is None:
            self.dropped += 1
            return []
        if replaced is not None:
            self._forget(replaced)
        who = Association(peer, session, hello.random, self._now, self._now, self._now + session.retransmit_s)
        self._candidates[peer] = who
        return self._feed_candidate(who, b"")

    def _has_room(self, host: str) -> bool:
        """May an address have one more handshake in flight? One of those that have the most gives way to it."""
        held = Counter(peer.host for peer in self._candidates)
        if held[host] < self.limits.handshakes / 2 and len(self._candidates) < self.limits.handshakes:
            return True
        prefixes = Counter(map(prefix_of, held.elements()))
        most = max(held, key=lambda other: (held[other], prefixes[prefix_of(other)]))
        if held[host] >= min(held[most], self.limits.handshakes / 2):
            most = host
        oldest = next(who for peer, who in self._candidates.items() if peer.host == most)
        if most == host and self._now < oldest.born + GRACE_S:
            return False
        self._forget(oldest)
        return True

    def _feed_candidate(self, who: Association, datagram: bytes) -> list[Event]:
        session, self._host = who.session, who.peer.host
        messages = session.receive(datagram) if datagram else []
        events = self._sent(who)
        if self._candidates.get(who.peer) is not who:  # dropped by a look-up that revoked it
            return events
        if session.established:
            return [*events, *self._promote(who), *self._delivered(who, messages)]
        if session.ended:
            self._forget(who)
            return [*events, Failed(session.identity, wrong_key=False, why=session.ended)]
        who.retransmit_at = self._now + session.retransmit_s
        return events

    def _promote(self, who: Association) -> list[Event]:
        del self._candidates[who.peer]
        identity = who.session.identity
        older = {id(a): a for a in (*self._of(identity), self._live.get(who.peer)) if a is not None}
        events = [e for a in older.values() for e in self._remove(a, "replaced")]
        while len(self._live) >= self.limits.sessions:
            events += self.close(next(iter(self._live.values())), "too many sessions")
        who.heard = self._now
        self._live[who.peer] = who
        return [*events, Opened(who)]

    def _feed_live(self, who: Association, protected: bytes) -> list[Event]:
        messages = who.session.receive(protected)
        return [*self._sent(who), *self._delivered(who, messages)]

    def _delivered(self, who: Association, messages: list[bytes]) -> list[Event]:
        events: list[Event] = [Received(who, m) for m in messages]
        if messages and self._live.get(who.peer) is who:
            who.heard = self._now
            self._live.move_to_end(who.peer)
        if who.session.ended:
            events += self.close(who, who.session.ended)
        return events

    def _sent(self, who: Association) -> list[Event]:
        return [Datagram(who.peer, data) for data in who.session.take()]

    def _remove(self, who: Association, why: str) -> list[Event]:
        del self._live[who.peer]
        who.session.close()
        return [Closed(who, why)]

    def _forget(self, who: Association) -> None:
        del self._candidates[who.peer]
        who.session.close()

    def _of(self, identity: str) -> list[Association]:
        return [a for a in self._live.values() if a.session.identity == identity]

    def _find_key(self, identity: str) -> bytes | None:
        if identity.startswith(PAIRING) and not self._pairings.admits(self._host, self._now):
            return None
        return self._lookup(identity)
