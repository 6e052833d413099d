# SPDX-License-Identifier: Apache-2.0
"""The running gateway: opens and closes rounds, adds updates as they arrive, publishes heads, knows who is there."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from fl_tiny.errors import DataError
from fl_tiny.gateway import forget, heads
from fl_tiny.gateway.bundles import Bundles
from fl_tiny.gateway.chunks import Chunks
from fl_tiny.gateway.encodings import KNOWN, Encodings
from fl_tiny.gateway.gather import (
    Changes,
    ExactOptions,
    ExactStart,
    Gathering,
    Grams,
    Kind,
    make_version,
    train_behind,
)
from fl_tiny.gateway.identity import Identities
from fl_tiny.gateway.models import Models
from fl_tiny.gateway.notices import notices
from fl_tiny.gateway.presence import Attendance
from fl_tiny.gateway.promise import Promised
from fl_tiny.gateway.store import HINT, Store
from fl_tiny.gateway.tables import Device, Entry, OpenRound, Version
from fl_tiny.gateway.trouble import Teller
from fl_tiny.gateway.uploads import Uploads
from fl_tiny.net.waiting import happens
from fl_tiny.protocol import wire
from fl_tiny.protocol.rounds import (
    Abort,
    Action,
    Came,
    Delivered,
    Event,
    Lost,
    Opened,
    Publish,
    Revoked,
    Rounds,
    RoundSettings,
    restored,
)
from fl_tiny.protocol.strategy import FedAvg, Strategy, encode_state

log = logging.getLogger(__name__)

Emit = Callable[[str, dict[str, Any]], None]

BEATS_PER_S = 200  # heartbeats that a gateway asks for, at most (guess)
SETTLE_S = 2.0  # a round waits this long behind the last newcomer, so that a fleet that starts together is together
SETTLE_LIMIT_S = 10.0
GATHER_S = 30.0  # a run's first round waits so long for `clients` devices
RETRY_S = 10.0  # the least pause behind a round that came to nothing
SAVE_EVERY_S = 5.0
FETCH_WAIT_S = 30.0  # how long the last round's participants may take to fetch the head before the gateway ends


class Gateway:
    """One fleet's rounds over one store; ``now`` everywhere is ``time.monotonic()``."""

    def __init__(
        self,
        store: Store,
        models: Models,
        seed: bytes,
        settings: RoundSettings,
        train: wire.Train,
        max_samples: int,
        exact: ExactOptions | None = None,
        strategy: Strategy | None = None,
        encodings: Encodings | None = None,
    ) -> None:
        self.store = store
        self.models = models
        self.bundles = Bundles(store)
        self.identities = Identities(store)
        self.settings = settings
        self.train = train
        self.strategy = strategy or FedAvg()
        self.max_samples = max_samples
        self.emit: Emit = lambda event, facts: None
        self.published: Callable[[], None] = lambda: None  # there is a newer head
        self.attendance = Attendance(store, models.trains)
        self.head: Version = store.head()
        self.epoch = store.epoch
        self.able: dict[bytes, Sequence[int]] = {}  # encodings that each device which registered can send
        self._encodings = encodings or Encodings()
        self.promised = Promised(store)
        self._teller = Teller(store)
        self._exact = exact or ExactOptions()
        self._seed = seed
        self._wake = asyncio.Event()
        self._next_open = 0.0
        self._opened_at = 0.0
        self._has_opened = False  # in this run of the gateway
        self._saved_at = time.monotonic()
        self._noticed: set[str] = set()
        self.gathering: Gathering
        self.rounds: Rounds
        self.uploads = Uploads(Chunks(store))
        self._check()
        self._resume()
        if self.rounds.rid is not None:
            self.uploads.begin(self.rounds.rid, self.gathering.size, self.gathering.takes)

    # ---- what requests ask and change -------------------------------------------------------------------------

    @property
    def manifest(self) -> wire.Manifest:
        """Of the model that rounds train."""
        return self.models.current.manifest

    def registered(self, device: Device, *, anew: bool = True) -> wire.Next:
        """A device has come. anew: perhaps after a crash; else the same start of it, over another session."""
        self.attendance.came(device, time.monotonic())
        if self.models.trains(device.did):
            self.handle(Came(device.did, anew))
        return self.saw(device)

    def heard(self, device: Device, beat: wire.Heartbeat) -> wire.Next:
        """A heartbeat has come."""
        if self.models.note(device.did, beat.model, beat.refusal) and self.models.trains(device.did):
            self.attendance.known.pop(device.did, None)  # as if it had just come: rounds settle for it
            self.handle(Came(device.did))
        told = self.saw(device, beat.samples, beat.head)
        self.attendance.known[device.did].lacks = beat.lacks or 0
        return told

    def saw(self, device: Device, samples: int | None = None, head: int | None = None) -> wire.Next:
        """A device has spoken: note it, and say what it should do next."""
        now = time.monotonic()
        known = self.attendance.spoke(device, now)
        known.samples = known.samples if samples is None else samples
        known.head = known.head if head is None else head
        self._wake.set()
        poll_s = self.rounds.poll_s(device.did, now, self._next_open - now)
        poll_s = max(poll_s, len(self.attendance.known) / BEATS_PER_S)
        self.attendance.expect(device.did, now + poll_s)
        trains, wanted = self.models.trains(device.did), self.models.wanted(device.did)
        return wire.Next(
            round(poll_s * 1000),
            self.models.head_number(device.did, self.head.number),
            self.rounds.rid if trains and self.rounds.invites(device.did, now) else None,
            self.epoch if trains else None,  # another model's last head was signed in the epoch it was made in
            wanted.manifest.counter if wanted else None,
            self.bundles.wanted(device.did),
        )

    def offer(self, did: bytes) -> wire.Offer:
        """The open round as an offer to a device. Only when ``rounds.rid`` is not None."""
        assert self.rounds.rid is not None
        able = self.able.get(did, KNOWN) if self.gathering.kind is Kind.TRAIN else ()
        left_ms = round(self.rounds.left_s(time.monotonic()) * 1000)
        return wire.Offer(
            self.rounds.rid,
            self.head.number + 1,
            self.head.digest,
            left_ms,
            self.head.steps,
            train_behind(self.strategy.train(self.train), solved=self.store.solved() is not None),
            wire.U16 if self.gathering.config else self.max_samples,  # sums are never of a choice of samples
            self.gathering.config,
            *self._encodings.offered(able, self.manifest.parameters),
        )

    def handle(self, event: Event) -> list[Action]:
        """Give the round's machine an event, carry out its closing actions, and return all of them."""
        actions = self.machine(event)
        self.carry_out(actions)
        return actions

    def machine(self, event: Event) -> list[Action]:
        """Give the round's machine an event; the caller carries out what it says."""
        return self.rounds.handle(event, time.monotonic())

    def received(self, rid: bytes, entries: Sequence[Entry]) -> None:
        """Updates are in the ledger now: the round may close."""
        for entry in entries:
            self.uploads.drop(entry.did)
            self.emit("update", {"number": self.head.number + 1, "status": "accepted", "device": entry.did.hex()})
            log.info("update accepted round=%d device=%s", self.head.number + 1, entry.did.hex()[:8])
        for entry in entries:
            if self.rounds.rid == rid:  # the one before may have closed it, with all of these
                self.handle(Delivered(entry.did))

    def drop_revoked(self) -> None:
        """Devices may have been revoked, or put in quarantine: out with their sessions, and with their updates."""
        self.identities.cut_out(time.monotonic())
        revoked = self.identities.out & set(self.attendance.known)
        if not revoked:
            return
        for did in revoked:
            del self.attendance.known[did]
            self.uploads.drop(did)
        for did in revoked:
            self.handle(Revoked(did))

    # ---- the loop -------------------------------------------------------------------------------------------

    async def run(self, total: int | None) -> None:
        """Run rounds until ``total`` heads are published in all (None: until cancelled)."""
        while total is None or self.head.number < total:
            now = time.monotonic()
            self._forget()
            self._roll_back()
            self._roll_out()
            self._teller.tick(now)
            self.drop_revoked()
            self.identities.tick(now)
            self._write_off(now)
            if self.rounds.rid is None and self._may_open(now):
                self._open(now)
            self.carry_out(self.rounds.tick(now))
            self._save(now)
            await self._sleep(now)
        await self._wait_for_fetches(total)

    def save_all(self) -> None:
        """Write what is only noted so far; called at the end."""
        self._saved_at = -SAVE_EVERY_S
        self._save(time.monotonic())
        self.uploads.save()

    async def _sleep(self, now: float) -> None:
        ends = [now + 1.0]  # commands beside us act within two seconds
        deadline = self.rounds.deadline()
        if deadline is not None:
            ends.append(deadline)
        elif self.attendance.known:
            ends.append(max(self._next_open, now + 0.1))
        self._wake.clear()
        await happens(self._wake, max(min(ends) - now, 0.01))

    def _write_off(self, now: float) -> None:
        """Stop waiting for devices that joined the round and have missed their heartbeat by far."""
        for did in self.attendance.lost(self.rounds.waited_for(), now):
            log.info("device lost device=%s", did.hex()[:8])
            self.handle(Lost(did))

    def _may_open(self, now: float) -> bool:
        here = [self.attendance.known[did] for did in self.attendance.online(now)]
        if not here or now < self._next_open:
            return False
        waited = now - min(p.since for p in here)
        if self.settings.clients is not None:
            return self._has_opened or len(here) >= self.settings.clients or waited >= GATHER_S
        settled = now - max(p.since for p in here) >= SETTLE_S or waited >= SETTLE_LIMIT_S
        return settled and (self._has_opened or len(here) >= self._active() or waited >= SETTLE_LIMIT_S)

    def _open(self, now: float) -> None:
        rid = os.urandom(8)
        number = self.head.number + 1
        kind = self._next_kind()
        self.store.open_round(OpenRound(rid, number, self.head.number, self.settings.deadline_s, kind.value))
        self.gathering = self._gathers(kind)
        self.uploads.begin(rid, self.gathering.size, self.gathering.takes)
        self._opened_at = now
        self._has_opened = True
        online = self.attendance.online(now)
        self.rounds.handle(Opened(rid, number, online, self._active(), self.settings.deadline_s), now)
        self.emit("round", {"number": number, "state": "open"})
        log.info("round open number=%d kind=%s devices=%d", number, kind.value, len(online))

    def _active(self) -> int:
        """Devices a round may hope for: enrolled, and not known to be silent."""
        silent, trains = self.attendance.is_silent, self.models.trains
        return sum(d.state == "active" and not silent(d.did) and trains(d.did) for d in self.store.devices())

    def carry_out(self, actions: list[Action]) -> None:
        """Close the round when the machine said so."""
        for action in actions:
            if isinstance(action, (Publish, Abort)):
                now = time.monotonic()
                self.attendance.silence(action.silent)
                self._next_open = now + self.settings.interval_s
                opened = self.store.opened()
                assert opened is not None
                if isinstance(action, Publish) and self.store.delivered(opened.rid):  # some may have gone out
                    self._publish(opened.rid, now - self._opened_at)
                else:
                    why = "no update was left" if isinstance(action, Publish) else action.why
                    self._next_open = max(self._next_open, now + RETRY_S)
                    self.store.abort(opened.rid, why, now - self._opened_at)
                    self.emit("round", {"number": opened.number, "state": "aborted", "why": why})
                    log.info("round aborted number=%d why=%r", opened.number, why)
                self.uploads.clear()
                self._wake.set()

    def _publish(self, rid: bytes, seconds: float) -> None:
        made = self.gathering.made(self.head, lambda: self.store.accepted(rid))
        number, exact = self.head.number + 1, self.gathering.kind is Kind.EXACT
        since = number if exact else self.store.since()
        version = make_version(number, made, self.models.current.digest, self._seed, since, self.epoch)
        state = encode_state(made.head.state)
        shares, outliers = made.shares, made.outliers
        self.store.publish(rid, version, seconds, shares=shares, outliers=outliers, keeps_sums=exact, strategy=state)
        self.head = version
        self.published()
        updates = len(made.shares)
        self.emit("round", {"number": version.number, "state": "published", "updates": updates})
        log.info("round published number=%d updates=%d seconds=%.2f", version.number, updates, seconds)
        self._notice()

    def _notice(self) -> None:
        """Tell what an operator should look at, each thing once while it lasts."""
        present = notices(self.store)
        for notice in present:
            if notice.about not in self._noticed:
                self.emit("notice", {"why": notice.text})
                log.warning("notice why=%r", notice.text)
        self._noticed = {notice.about for notice in present}

    # ---- exact starts -----------------------------------------------------------------------------------------

    @functools.cached_property
    def _start(self) -> ExactStart:
        return ExactStart.of(self.store, self.models.current.data)

    def _next_kind(self) -> Kind:
        return Kind.EXACT if self._exact.wanted and self.head.number == self.models.first else Kind.TRAIN

    def _gathers(self, kind: Kind) -> Gathering:
        if kind is Kind.EXACT:
            return Grams(self._start, self._exact.min_samples)
        state, share = self.store.strategy_state(), self._encodings.topk_share
        return Changes(self.manifest, self.strategy, state, share, self.max_samples)

    def _forget(self) -> None:
        """A command beside us may have asked to forget devices: publish heads without them."""
        for did in self.store.to_forget():
            number = self.rounds.rid and self.head.number + 1
            version = forget.carry_out(self.store, self._start, self._seed, did)
            if number:
                self.emit("round", {"number": number, "state": "aborted", "why": "a device was forgotten"})
            self._begin_anew(version)
            log.info("device forgotten device=%s number=%d", did.hex()[:8], version.number)

    def _roll_back(self) -> None:
        """A command beside us may have asked for an earlier head: publish that one again."""
        number = self.rounds.rid and self.head.number + 1
        version = heads.carry_out(self.store, self._seed)
        if version is None:
            return
        if number:
            self.emit("round", {"number": number, "state": "aborted", "why": heads.WHY})
        self._begin_anew(version)
        log.info("head rolled back number=%d", version.number)

    def _roll_out(self) -> None:
        """A command beside us may have published a model: when the fleet carries it, begin anew with it."""
        self.models.refresh()
        self.bundles.refresh()
        if not self.models.is_carried(self.attendance.here(time.monotonic())):
            return
        version = self.models.complete()
        self.__dict__.pop("_start", None)
        self._begin_anew(version)
        log.info("model rolled out counter=%d number=%d", self.manifest.counter, version.number)

    def _begin_anew(self, head: Version) -> None:
        """Go on from a head that no round has made, as at a start. The store has ended the round that was open."""
        self.head = head
        self._resume()
        self.uploads.clear()
        self._has_opened, self._next_open = False, 0.0
        self.published()
        self.emit("round", {"number": head.number, "state": "published", "updates": 0})

    # ---- across a restart -----------------------------------------------------------------------------------

    def _check(self) -> None:
        faults = self.store.faults()
        if faults:
            raise DataError("the ledger is not sound: " + "; ".join(faults), hint=HINT)

    def rebuild(self) -> None:
        """A write has failed: the round anew, as the ledger has it."""
        self._resume()

    def _resume(self) -> None:
        """The round that is open in the ledger; without one, the next."""
        opened = self.store.opened()
        self.gathering = self._gathers(Kind(opened.kind) if opened else self._next_kind())
        self.rounds = Rounds(self.settings)
        if opened is None:
            return
        now = time.monotonic()
        left_s = max(opened.left_s, min(60.0, self.settings.deadline_s))  # docs/protocol.md: a restart costs no round
        self._opened_at = now - max(0.0, self.settings.deadline_s - opened.left_s)
        answers = self.store.answers(opened.rid)
        joined = frozenset(did for did, said in answers if said == wire.Said.JOIN)
        self.attendance.expect_back(joined, now)
        event = Opened(opened.rid, opened.number, joined, self._active(), left_s)
        delivered = self.store.delivered(opened.rid)
        self.rounds = restored(self.settings, event, answers, now, delivered)
        log.info("round resumed number=%d updates=%d", opened.number, len(delivered))

    def _save(self, now: float) -> None:
        if now - self._saved_at < SAVE_EVERY_S:
            return
        self.store.pass_time(min(now - self._saved_at, 2 * SAVE_EVERY_S))
        self._saved_at = now
        if self.rounds.rid is not None:
            self.store.save_left(self.rounds.rid, self.rounds.left_s(now))
        self.attendance.save(now)

    async def _wait_for_fetches(self, total: int) -> None:
        """Give who took part in the last round, and who is here besides, the time to fetch its head."""
        end = time.monotonic() + FETCH_WAIT_S
        heads = {d.did: d.head or 0 for d in self.store.devices()}
        took_part = {d.did for d in self.store.devices() if d.last_round == self.head.number and d.state == "active"}
        while (now := time.monotonic()) < end:
            if not self.attendance.lack(total, took_part, heads, now):
                return
            await asyncio.sleep(0.1)
