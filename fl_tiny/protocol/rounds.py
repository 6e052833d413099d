# SPDX-License-Identifier: Apache-2.0
"""The gateway's state machine for a round: who takes part, when it closes, when each device should ask again.

Pure: ``now`` is seconds of the caller's monotonic clock. A peer's message that does not fit gets a ``Refuse``;
``OutOfTurn`` means that our own driver erred, and changes nothing. docs/protocol.md, "Rounds", draws the table.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum

from fl_tiny.errors import OutOfTurn, RemoteError
from fl_tiny.protocol.wire import Code, Said

GRACE_S = 3.0  # the least wait for stragglers once a quorum has delivered (guess; a slow board misses one round)
IDLE_POLL_S = 60.0  # heartbeats of an idle fleet: 94 B each (docs/protocol.md, bytes)
LONGEST_POLL_S = 240.0  # of a fleet with long intervals; a session that is silent for 300 s is closed
POLLS = 15  # between two rounds
LEAST_POLL_S = 0.2
WIDEN_S = 5.0  # in so long without enough devices twice as many are invited (guess)


class State(str, Enum):
    """Where a round stands."""

    IDLE = "idle"
    OPEN = "open"  # devices join and train
    COLLECTING = "collecting"  # one update at least is in the ledger


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """clients: updates wanted (None: every device online).  quorum: share of them that may close the round.

    over_selection: so many times ``clients`` may join, rounded down; who is later than ``clients`` others is LATE.
    min_updates: a head is made of so many updates or of none.  None: of two, while a second device works on one.
    """

    clients: int | None = None
    quorum: float = 0.6
    deadline_s: float = 600.0
    interval_s: float = 3600.0
    over_selection: float = 1.3
    min_updates: int | None = None

    @property
    def places(self) -> int | None:
        """How many devices may join a round; None: all."""
        return None if self.clients is None else max(self.clients, math.floor(self.clients * self.over_selection))

    @property
    def idle_poll_s(self) -> float:
        """The longest poll: a fleet at a round an hour needs none a minute."""
        return min(max(self.interval_s / POLLS, IDLE_POLL_S), LONGEST_POLL_S)


# ---- events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """Our timer: a round begins. online: devices that may answer.  active: devices that are enrolled, online or not."""

    rid: bytes
    number: int
    online: frozenset[bytes]
    active: int
    left_s: float


@dataclass(frozen=True, slots=True)
class Came:
    """A device came online. anew: perhaps after a crash: what it had joined before, it must join again."""

    did: bytes
    anew: bool = True


@dataclass(frozen=True, slots=True)
class Answered:
    """A device's answer to the offer ``rid``."""

    did: bytes
    rid: bytes
    said: int


@dataclass(frozen=True, slots=True)
class Submitting:
    """A device asks to deliver: may its update go into the ledger? Changes nothing."""

    did: bytes
    rid: bytes


@dataclass(frozen=True, slots=True)
class Delivered:
    """A device's update is in the ledger (our own store said so)."""

    did: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """A device that joined has not spoken for long: do not wait for it, but take its update if it comes."""

    did: bytes


@dataclass(frozen=True, slots=True)
class Revoked:
    """The operator took a device out."""

    did: bytes


Event = Opened | Came | Answered | Submitting | Delivered | Lost | Revoked

# ---- actions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Take:
    """The peer's message is in order: do what it asks."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The peer's message does not fit the state: answer with this code. Nothing has changed."""

    code: Code
    why: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Close the round: aggregate what is in the ledger and publish the next head. silent: who was waited for."""

    silent: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Abort:
    """Close the round without a head. silent: who was waited for."""

    why: str
    silent: frozenset[bytes]


Action = Take | Refuse | Publish | Abort


@dataclass(slots=True)
class _Round:
    rid: bytes
    number: int
    opened_at: float
    deadline: float
    active: int
    expected: set[bytes] = field(default_factory=set)
    joined: set[bytes] = field(default_factory=set)
    declined: set[bytes] = field(default_factory=set)
    delivered: set[bytes] = field(default_factory=set)
    lost: set[bytes] = field(default_factory=set)
    quorum_at: float | None = None
    is_late: bool = False  # the deadline has passed with too few updates: the round lasts twice as long


class Rounds:
    """The gateway's side of one round after the other: events in, actions out, no clock and no socket of its own."""

    def __init__(self, settings: RoundSettings) -> None:
        self.settings = settings
        self._round: _Round | None = None

    @property
    def state(self) -> State:
        """Where the round stands."""
        if self._round is None:
            return State.IDLE
        return State.COLLECTING if self._round.delivered else State.OPEN

    @property
    def rid(self) -> bytes | None:
        """The open round, if there is one."""
        return self._round.rid if self._round else None

    def handle(self, event: Event, now: float) -> list[Action]:
        """What the caller must now do, in order. Raises: OutOfTurn, with the state unchanged."""
        if isinstance(event, Opened):
            return self._open(event, now)
        actions = HANDLE[type(event)](self, event, now)
        return actions + self.tick(now)

    def tick(self, now: float) -> list[Action]:
        """Time passed: the round's end, if it has come. The round is closed when Publish or Abort is returned."""
        if self._round is None:
            return []
        end = self._verdict(self._round, now)
        if end is None:
            return []
        self._round = None
        return [end]

    def deadline(self) -> float | None:
        """Call ``tick`` no later than this."""
        if self._round is None:
            return None
        r = self._round
        ends = [self._last(r) if r.is_late else r.deadline]
        if r.quorum_at is not None and len(r.delivered) >= self._least(r):
            ends.append(self._grace_end(r))
        return min(ends)

    def left_s(self, now: float) -> float:
        """Seconds until the open round's deadline, 0 when none is open."""
        return max(0.0, self._round.deadline - now) if self._round else 0.0

    def invites(self, did: bytes, now: float) -> bool:
        """Is ``did`` asked to answer the open round? A sample of those online first, more while places are free."""
        r = self._round
        if r is None or did in r.joined | r.declined or not self._has_place(r):
            return False
        places = self.settings.places
        if places is None or places >= len(r.expected):
            return True
        share = places / len(r.expected) * 2 ** min((now - r.opened_at) / WIDEN_S, 64)
        lot = int.from_bytes(hashlib.sha256(r.rid + did).digest()[:8], "big")  # another in each round, kept by none
        return lot < share * 2**64

    def waited_for(self) -> frozenset[bytes]:
        """Devices that have joined the open round and not delivered yet."""
        r = self._round
        return frozenset(r.joined - r.delivered - r.lost) if r else frozenset()

    def poll_s(self, did: bytes, now: float, next_open_s: float) -> float:
        """When ``did`` should send its next heartbeat, in seconds from now. next_open_s: until the next round."""
        r = self._round
        if r is None:
            return min(max(next_open_s, LEAST_POLL_S), self.settings.idle_poll_s)
        if r.is_late:
            return self.settings.idle_poll_s
        if did in r.delivered:  # it waits for the head: often enough to cost a fifth of the round at most
            return min(max(0.2 * (now - r.opened_at), LEAST_POLL_S), 10.0)
        if did in r.joined:
            return min(max(0.5 * (now - r.opened_at), 1.0), 30.0)
        return min(max(0.5 * (now - r.opened_at), 0.5), IDLE_POLL_S)

    # ---- rows of the table ----------------------------------------------------------------------------------

    def _open(self, event: Opened, now: float) -> list[Action]:
        if self._round is not None:
            raise OutOfTurn("a round is open already")
        self._round = _Round(event.rid, event.number, now, now + event.left_s, event.active, set(event.online))
        return []

    def _came(self, event: Came, _now: float) -> list[Action]:
        r = self._round
        if r is not None:
            r.expected.add(event.did)
            r.lost.discard(event.did)
            if event.anew and event.did not in r.delivered:
                r.joined.discard(event.did)
        return []

    def _answered(self, event: Answered, _now: float) -> list[Action]:
        r = self._round
        if r is None or event.rid != r.rid:
            return [Refuse(Code.LATE, "this round is not open")]
        if event.said == Said.JOIN:
            if event.did in r.joined or event.did in r.delivered:
                return [Take()]
            if not self._has_place(r):
                return [Refuse(Code.PHASE, "this round has enough devices")]
            r.joined.add(event.did)
            r.declined.discard(event.did)
            r.lost.discard(event.did)
            return [Take()]
        if event.did in r.delivered:
            return [Refuse(Code.PHASE, "an update of this device is in the ledger")]
        r.joined.discard(event.did)
        r.declined.add(event.did)
        return [Take()]

    def _submitting(self, event: Submitting, _now: float) -> list[Action]:
        r = self._round
        if r is None or event.rid != r.rid:
            return [Refuse(Code.LATE, "this round is not open")]
        if event.did not in r.joined:
            return [Refuse(Code.PHASE, "this device has not joined the round")]
        return [Take()]

    def _delivered(self, event: Delivered, now: float) -> list[Action]:
        r = self._round
        if r is None:
            raise OutOfTurn("an update was delivered to no round")
        r.joined.add(event.did)
        r.delivered.add(event.did)
        r.lost.discard(event.did)
        if r.quorum_at is None and len(r.delivered) >= self._need(r):
            r.quorum_at = now
        return [Take()]

    def _lost(self, event: Lost, _now: float) -> list[Action]:
        if self._round is not None and event.did not in self._round.delivered:
            self._round.lost.add(event.did)
        return []

    def _revoked(self, event: Revoked, _now: float) -> list[Action]:
        r = self._round
        if r is not None:
            for group in (r.expected, r.joined, r.delivered, r.lost):
                group.discard(event.did)
            r.active -= 1
        return []

    # ---- arithmetic -----------------------------------------------------------------------------------------

    def _target(self, r: _Round) -> int:
        """Updates wanted. Who declines or is lost lowers it: a converged fleet, or a dead board, is not waited for."""
        if self.settings.clients is None:
            return max(1, len((r.expected | r.joined) - r.declined - r.lost))
        return max(1, min(self.settings.clients, r.active - len(r.declined | r.lost)))

    def _need(self, r: _Round) -> int:
        return math.ceil(self.settings.quorum * self._target(r) - 1e-9)

    def _least(self, r: _Round) -> int:
        """Updates that a head is made of at least."""
        if self.settings.min_updates is not None:
            return self.settings.min_updates
        return 2 if r.joined - r.declined - r.lost - r.delivered else 1

    def _last(self, r: _Round) -> float:
        return r.deadline + self.settings.deadline_s

    def _has_place(self, r: _Round) -> bool:
        places = self.settings.places
        return places is None or len(r.joined) < places

    def _grace_end(self, r: _Round) -> float:
        """Stragglers get as long again as the quorum needed: a dead device costs a round its own length at most."""
        assert r.quorum_at is not None
        return r.quorum_at + max(GRACE_S, r.quorum_at - r.opened_at)

    def _verdict(self, r: _Round, now: float) -> Publish | Abort | None:
        silent = frozenset((r.expected | r.joined) - r.declined - r.delivered)
        if r.delivered:
            return self._closed(r, now, silent)
        waiting = silent - r.lost
        if not waiting and (self.settings.clients is None or r.active <= len(r.declined | r.lost)):
            return Abort("every device declined" if r.declined else "no device takes part", silent)
        return Abort("no update came before the deadline", silent) if now >= r.deadline else None

    def _closed(self, r: _Round, now: float, silent: frozenset[bytes]) -> Publish | Abort | None:
        """The end of a round that has an update, if it has come."""
        count, least = len(r.delivered), self._least(r)
        if count >= self._need(r) and r.quorum_at is None:
            r.quorum_at = now  # a decline or a revocation lowered the target
        enough = self.settings.clients is not None and count >= self.settings.clients
        complete = count >= self._target(r) and r.joined <= r.delivered | r.lost
        waited = r.quorum_at is not None and now >= self._grace_end(r)
        if count >= least and (enough or complete or waited or now >= r.deadline):
            return Publish(frozenset() if enough else silent)
        r.is_late = now >= r.deadline
        if now < self._last(r):
            return None
        strict = self.settings.min_updates is not None
        return Abort(f"{count} of {least} updates came", silent) if strict else Publish(silent)


HANDLE: dict[type, Callable[..., list[Action]]] = {
    Came: Rounds._came,
    Answered: Rounds._answered,
    Submitting: Rounds._submitting,
    Delivered: Rounds._delivered,
    Lost: Rounds._lost,
    Revoked: Rounds._revoked,
}


def restored(
    settings: RoundSettings,
    event: Opened,
    answers: Collection[tuple[bytes, int]],
    now: float,
    delivered: Collection[bytes] = (),
) -> Rounds:
    """The machine after a restart of the gateway: the stored round with its stored answers and deliveries."""
    rounds = Rounds(settings)
    rounds._open(event, now)
    for did, said in answers:
        rounds._answered(Answered(did, event.rid, said), now)
    for did in delivered:
        rounds._delivered(Delivered(did), now)
    return rounds


def raise_refusal(actions: list[Action]) -> None:
    """Raises: RemoteError when the round's machine refused a message."""
    for action in actions:
        if isinstance(action, Refuse):
            raise RemoteError(action.why, code=action.code)
