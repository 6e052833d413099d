# SPDX-License-Identifier: Apache-2.0
"""Which devices of a fleet are there: what each said last, and when it should speak again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Device
from fl_tiny.statedir import boot_clock_s, boot_id

LOST_S = 15.0  # behind the heartbeat that was due: a stale session (8 s) and a handshake fit into it
RETURN_S = 60.0  # what a device gets to find its gateway: three silent sessions and a first back-off fit into it
OVERDUE_S = 3.0  # a heartbeat may come that late in a fleet that is all right


@dataclass(slots=True)
class Presence:
    """What a device's last heartbeat said. seen, since: our monotonic clock."""

    seen: float
    since: float
    samples: int = 0
    head: int = 0
    silent: bool = False  # it let a round wait; it counts again when it speaks
    lacks: int = 0  # what its training waits for

    def row(self, did: bytes, shift: float, boot: str) -> tuple[bytes, int, int, float, str, int]:
        """As the ledger keeps it. shift: from our clock to the machine's since it booted as ``boot``."""
        return did, self.samples, self.head, self.seen + shift, boot, self.lacks


class Attendance:
    """The presence of each device that has spoken in this run; ``now`` is ``time.monotonic()``."""

    def __init__(self, store: Store, trains: Callable[[bytes], bool]) -> None:
        """trains: does a device hold the model that rounds are for?"""
        self.known: dict[bytes, Presence] = {}
        self._store, self._trains = store, trains
        self._due: dict[bytes, float] = {}  # when each device should speak next
        self._dirty: set[bytes] = set()
        self._boot = boot_id()

    def came(self, device: Device, now: float) -> None:
        """A device has registered, perhaps anew after a crash."""
        known = self.known.get(device.did)
        since = known.since if known and self._is_here(device.did, now) and not known.silent else now
        self.known[device.did] = Presence(now, since, device.samples or 0, device.head or 0)

    def spoke(self, device: Device, now: float) -> Presence:
        """A device has said something: what is known of it, for what it said to be noted there."""
        known = self.known.setdefault(device.did, Presence(now, now, device.samples or 0, device.head or 0))
        if not self._is_here(device.did, now) or known.silent:
            known.since, known.silent = now, False
        known.seen = now
        self._dirty.add(device.did)
        return known

    def is_at_work(self, did: bytes, until: float) -> None:
        """A device asks for something, or waits as it was told: its heartbeat may be late."""
        self._due[did] = max(self._due.get(did, until), until)

    def put_off(self, did: bytes, now: float, seconds: float) -> None:
        """A device has spoken, and was told to come again: it is here, and its heartbeat may be late."""
        self.is_at_work(did, now + seconds)
        if did in self.known:
            self.known[did].seen = now

    def expect(self, did: bytes, when: float) -> None:
        """A device should speak again by then."""
        self._due[did] = when

    def expect_back(self, joined: Iterable[bytes], now: float) -> None:
        """The gateway was restarted: these devices have to find it."""
        self._due = dict.fromkeys(joined, now + RETURN_S - LOST_S)

    def lost(self, waited_for: Iterable[bytes], now: float) -> list[bytes]:
        """Of these devices those that have missed their heartbeat by far."""
        return [did for did in waited_for if now > self._due.get(did, now) + LOST_S]

    def silence(self, dids: Iterable[bytes]) -> None:
        """They let a round wait: they count as offline until they speak."""
        for did in dids:
            if did in self.known:
                self.known[did].silent = True

    def is_silent(self, did: bytes) -> bool:
        """Did it let the last round wait, and has not spoken since?"""
        return did in self.known and self.known[did].silent

    def online(self, now: float) -> frozenset[bytes]:
        """Devices that hold the model, have spoken lately and did not let the last round wait."""
        return frozenset(did for did in self.here(now) if not self.known[did].silent and self._trains(did))

    def here(self, now: float) -> list[bytes]:
        """Devices that have not missed their heartbeat by far, whatever model they hold."""
        return [did for did in self.known if self._is_here(did, now)]

    def _is_here(self, did: bytes, now: float) -> bool:
        return now <= max(self.known[did].seen, self._due.get(did, 0.0)) + RETURN_S

    def lack(self, head: int, took_part: Collection[bytes], heads: dict[bytes, int], now: float) -> bool:
        """Has one of ``took_part``, or of those that speak in time, not fetched ``head``? heads: of earlier runs."""
        here = {did for did in self.known if now <= self._due.get(did, 0.0) + OVERDUE_S}
        has = heads | {did: p.head for did, p in self.known.items()}
        return any(has.get(did, 0) < head for did in here.union(took_part))

    def save(self, now: float) -> None:
        """Write what devices have said since the last time."""
        if self._dirty:
            shift = boot_clock_s() - now
            known = [(did, self.known[did]) for did in self._dirty if did in self.known]
            self._store.note_presence([p.row(did, shift, self._boot) for did, p in known])
            self._dirty.clear()
