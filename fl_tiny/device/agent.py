# SPDX-License-Identifier: Apache-2.0
"""The device daemon: ties link, session, samples and training child together; it holds no numpy."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fl_tiny import config, notify, statedir
from fl_tiny.device import budget, derived, find, job, slots
from fl_tiny.device.bundle import BUSY, IDLE, Fetch
from fl_tiny.device.child import Child, Word
from fl_tiny.device.gatewaykey import with_key
from fl_tiny.device.layout import DEVICE_KEY
from fl_tiny.device.left import Body, Summed
from fl_tiny.device.link import Link, raise_if_out
from fl_tiny.device.machine import Machine, note_reached
from fl_tiny.device.newkey import take_places
from fl_tiny.device.store import DeviceStore, Journal, Kept, floats_to_bytes
from fl_tiny.device.upgrade import Upgrade
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.net.coap import Bodies
from fl_tiny.protocol import consent, session, signed, wire
from fl_tiny.protocol.residual import undelivered

log = logging.getLogger(__name__)

Emit = Callable[[str, dict[str, Any]], None]

BACK_OFF_S, BACK_OFF_LIMIT_S = 5.0, 900.0  # docs/protocol.md, stale session: full jitter
VISIT_S = 60.0  # how long `--once` goes on for a release of the board's system that is offered
ONCE_PATIENCE_S = 15.0  # how long `--once` waits for a round that is about to open, or for the head of its own
SOON_S = 5.0  # a gateway that asks back this soon has something coming
MOST_BEHIND = 5  # heads; beyond it a model is chosen between two rounds that follow at once
ROOM_BYTES = 4 << 20  # head, update, residual and choice of the largest head, with SQLite's log of them


class Agent:
    """One enrolled device. ``run`` returns when what was asked for is done."""

    def __init__(
        self, directory: Path, emit: Emit, *, background: bool = False, machine: Machine | None = None
    ) -> None:
        self._directory = directory
        self._settings = config.load(directory / statedir.SETTINGS, config.DeviceSettings)
        self._store = DeviceStore.open(directory / statedir.DATABASE)
        self._kept: Bodies = {}
        self._store.check()
        self._emit = emit
        self._did: bytes = self._store.get("did")
        take_places(directory, self._store)
        self._seed = statedir.read_secret(directory, DEVICE_KEY)
        self._boots = self._store.count_start()
        self._boot = os.urandom(8)  # which start this is: a copy of DIR makes another
        slots.adopt(directory, self._store)
        derived.settle_place(directory, derived.memory_of(self._settings.model_dir))
        self._upgrade = Upgrade(directory, self._store, emit)
        self._machine = machine or Machine()
        self._release = Fetch(directory, self._machine, emit)
        self._read_manifest()
        owes = self._store.journal() is not None
        self._session = session.Session(session.State.SENDING if owes else session.State.IDLE)
        self._floors = (self._settings.privacy or config.Privacy()).floors
        self._offer: wire.Offer | None = None
        self._last: int | None = None  # the youngest sample that the offer's sums may be of
        self._answered: bytes | None = None  # the round answered last
        self._to_say: session.SendAnswer | None = None  # an answer that had no session yet
        self._child = Child(directory, budget.limits_of(self._settings), background=background)
        self._given = self._store.head()  # what the child at work starts from
        self._started = 0.0  # when it did
        self._trying = False  # the child at work tries a model
        self._would_not = 0  # problem code of what the child at work would not do
        self._training_s: float | None = None  # how long it took to its update

    def _read_manifest(self) -> None:
        payload = signed.payload_of(self._store.get("manifest"))
        self._manifest_digest = hashlib.sha256(payload).digest()
        self._manifest = wire.decode(wire.Manifest, payload)

    async def run(self, *, once: bool, rounds: int | None) -> None:
        """Take part until done: ``once``: in what is open; ``rounds``: until so many rounds counted; else for ever.

        Raises: EnvironmentFault, RemoteError when ``once`` finds no gateway, or when the device is revoked.
        """
        self._finish_switch()
        jitter = random.Random()  # noqa: S311 - spreads devices out, hides nothing
        failures = 0
        try:
            while not self._needs_nothing(rounds):
                try:
                    link = await self._connect()
                    failures = 0
                    try:
                        await self._serve(link, once=once, rounds=rounds)
                        return
                    finally:
                        await link.close()
                except (EnvironmentFault, RemoteError) as fault:
                    if isinstance(fault, RemoteError) and fault.code == wire.Code.REVOKED:
                        raise  # nothing that this board could finish would count
                    await self._finish_work()
                    if self._needs_nothing(rounds):
                        return
                    if once:
                        raise
                    pause = jitter.uniform(0.2, 1.0) * min(BACK_OFF_S * 2**failures, BACK_OFF_LIMIT_S)
                    failures += 1
                    notify.status(f"no gateway, again in {pause:.0f} s: {fault}")
                    log.warning("gateway lost why=%r again_s=%.0f", str(fault), pause)
                    await asyncio.sleep(pause)
            await self._finish_work()
        finally:
            await self._child.end()
            self._store.close()

    # ---- the conversation -----------------------------------------------------------------------------------

    async def _connect(self) -> Link:
        link, where = await find.open_link(self._directory, self._store, self._settings)
        link.go_on_with(self._kept)
        self._seed = statedir.read_secret(self._directory, DEVICE_KEY)
        try:
            await link.register(self._did, self._boots, self._boot, *self._release.runs())
        except RemoteError as fault:
            self._store.put(trouble=fault.what)
            await link.close()
            raise
        if self._store.get("trouble"):
            self._store.put(trouble="")
        self._upgrade.connected()
        self._release.connected()
        if self._release.is_told:
            note_reached(self._directory, self._machine)
        self._emit("connected", {"gateway": where})
        log.info("connected gateway=%s", where)
        notify.status(f"connected to {where}")
        return link

    async def _serve(self, link: Link, *, once: bool, rounds: int | None) -> None:
        started = time.monotonic()
        await self._rejoin(link)
        if self._session.state is session.State.SENDING:
            await self._deliver(link, again=True)
        while True:
            told = await self._beat(link)
            if (told.epoch or 0, told.head) > self._store.head().rank and self._has_room():
                await self._fetch_head(link)
                told = await self._beat(link)  # the next round may have opened meanwhile: one child does both
            if self._session.state is session.State.IDLE:
                await self._upgrade.consider(link, told.model)
            self._release.offered(told.bundle)
            if self._needs_nothing(rounds):
                return await self._finish_work()
            trying = self._upgrade.trial is not None
            if told.rid is not None and not trying and not (once and self._answered):
                await self._consider(link, told.rid)
            self._start_child()
            idle = not self._child.works and self._session.state is session.State.IDLE
            if idle and once and not trying and self._once_over(told, started):
                return await self._release.pieces(link, VISIT_S)
            end = time.monotonic() + told.poll_ms / 1000
            pause = BUSY if self._child.works or self._session.state is not session.State.IDLE else IDLE
            await self._release.pieces(link, told.poll_ms / 1000, pause, lambda: not self._child.words.empty())
            await self._listen(link, max(0.0, end - time.monotonic()))

    async def _rejoin(self, link: Link) -> None:
        """Registering left the round we are in, if it is still open: say again that we take part, or do not."""
        owed = self._store.journal()
        if self._to_say is not None:
            await self._say_what_waits(link)
        elif self._session.state is session.State.SENDING and owed is not None:
            await self._say(link, wire.decode(wire.Update, signed.payload_of(owed.signed)).rid, wire.Said.JOIN)
        elif self._session.state is session.State.TRAINING and self._offer is not None:
            await self._say(link, self._offer.rid, wire.Said.JOIN)

    async def _say_what_waits(self, link: Link) -> None:
        if self._to_say is not None and self._offer is not None:
            await self._say(link, self._offer.rid, self._to_say.said, self._to_say.code)
            self._to_say = None

    async def _say(self, link: Link, rid: bytes, said: wire.Said, code: int = 0) -> None:
        """An answer whose refusal means little: the round is over, and the upload's own answer says what counts."""
        try:
            await link.answer(rid, said, code)
        except RemoteError as fault:
            raise_if_out(fault)

    def _carry_out(self, actions: list[session.Action]) -> None:
        """Do what the round's machine says; an answer waits for ``_say_what_waits``, since there may be no session."""
        for action in actions:
            if isinstance(action, session.Settle):
                self._settle(action)
            else:
                self._to_say = action

    async def _beat(self, link: Link) -> wire.Next:
        samples, lacks = self._store.sample_count()[0], int(self._child.look()) or None
        version, model = self._store.head().version, self._upgrade.heartbeat()
        return await link.heartbeat(wire.Heartbeat(version, samples, lacks, *model, self._release.refusal()))

    async def _fetch_head(self, link: Link) -> None:
        before = self._store.head()
        manifest, shapes = (self._manifest_digest, self._manifest.body_size), self._manifest.shapes
        held = await with_key(self._store, link, lambda pk: link.head(*manifest, pk, before, shapes))
        new = held.description
        if new.rank > before.rank:
            restored = new.rank[0] > before.rank[0]  # the gateway went on from a backup, or the head held is damaged
            is_held = new.digest == hashlib.sha256(before.body).digest()
            unknown = not is_held if restored else (new.since or 0) > before.version
            self._store.put_head(held, anew=unknown, restored=restored)
            self._emit("round", {"number": held.version, "state": "published"})

    async def _consider(self, link: Link, rid: bytes) -> None:
        """Answer an offer, unless we are still busy with an earlier round or job."""
        if rid == self._answered or self._session.state is not session.State.IDLE or self._child.works:
            return
        offer = await link.offer()
        head = self._store.head()
        if offer.base != head.description.digest or offer.number != head.version + 1:
            return  # a head was published between two messages; the next heartbeat says so
        if offer.encoding == wire.BY_LINK:
            offer = replace(offer, encoding=wire.Encoding.INT4.value if link.quality.is_bad else None)
        self._offer = offer
        reply = consent.reply(offer, self._floors, self._stock(), self._store.left.past(offer.rid, offer.number))
        if reply.code:
            self._store.left.refuse(offer.number, reply.why)
        elif reply.why:
            log.info("round declined round=%d why=%r", offer.number, reply.why)
        (action,) = self._session.handle(session.OfferSeen(reply))
        assert isinstance(action, session.SendAnswer)
        joins, taken = action.said is wire.Said.JOIN, False
        try:
            await link.answer(offer.rid, action.said, action.code)
            taken = True
        except RemoteError as fault:
            raise_if_out(fault)
            log.info("answer refused round=%d why=%r", offer.number, str(fault))
        finally:  # also when the session was lost: the round may be offered again
            if joins:
                self._carry_out(self._session.handle(session.JoinTaken() if taken else session.Refused(0)))
        if taken:
            self._answered = offer.rid
            facts = {"lacks": self._child.lack.names(), "why": reply.why}
            state = "joined" if joins else "declined"
            self._emit("round", {"number": offer.number, "state": state, **{k: v for k, v in facts.items() if v}})

    def _stock(self) -> consent.Stock:
        """What this board has for a round. Sums are of the samples that earlier sums were of, or of all."""
        samples, held = self._store.sample_count()
        earlier = self._store.left.summed()
        self._last = earlier[0] if earlier else self._store.newest()
        summed = self._store.trainable(self._last)
        able = not self._child.look() and self._has_room()
        if self._manifest.task:  # labels or values: the child looks at them (device/training.py)
            return consent.Stock(samples, held, None, {0: sum(summed.values())}, able)
        return consent.Stock(samples, held, len(self._store.counts()), summed, able)

    async def _listen(self, link: Link, seconds: float) -> None:
        """Wait for the child's next answer, or until it is time for a heartbeat."""
        try:
            answer = await self._child.heard(seconds)
        except asyncio.TimeoutError:
            return
        if isinstance(answer, wire.Lack):
            await self._say_paused(link, answer)
            return
        self._take(answer)
        await self._say_what_waits(link)
        if self._session.state is session.State.SENDING:
            await self._deliver(link, again=False)

    async def _say_paused(self, link: Link, lack: wire.Lack) -> None:
        """The child stands still, or goes on: a round need not wait for it meanwhile."""
        self._note(lack)
        if self._session.state is session.State.TRAINING and self._offer is not None:
            await self._say(link, self._offer.rid, wire.Said.NO_BUDGET if lack else wire.Said.JOIN)

    def _note(self, lack: wire.Lack) -> None:
        """Tell people what the board lacks for training."""
        self._emit("budget", {"lacks": lack.names()})
        log.warning("training waits lacks=%s", ",".join(lack.names())) if lack else log.info("training goes on")

    def _take(self, answer: Word) -> None:
        """Keep what the child said; None: it has ended. Needs no gateway."""
        if isinstance(answer, job.Trained):
            self._training_s = round(time.monotonic() - self._started, 3)
            self._keep(answer)
        elif isinstance(answer, job.Chosen):
            self._switch(answer)
        elif isinstance(answer, job.Tried) or (isinstance(answer, job.Failed) and self._trying):
            self._trying = False
            found = self._upgrade
            if found.tried(answer) if isinstance(answer, job.Tried) else found.failed(answer.why):
                self._read_manifest()
        elif isinstance(answer, job.Failed):
            log.error("training failed why=%r", answer.why)
            self._would_not = answer.code or 0
            if answer.code and self._offer is not None:
                self._store.left.refuse(self._offer.number, answer.why)
        elif isinstance(answer, wire.Lack):
            self._note(answer)
        else:
            self._child.ended()
            if self._session.state is session.State.TRAINING:
                self._carry_out(self._session.handle(session.TrainingFailed(self._would_not)))

    async def _finish_work(self) -> None:
        """Without a gateway: an update waits in the journal, and the head that came last is still chosen from."""
        self._start_child()
        while self._child.works:
            self._take(await self._child.words.get())
            self._start_child()

    # ---- the update -----------------------------------------------------------------------------------------

    def _keep(self, trained: job.Trained) -> None:
        """Sign an update and put it into the journal, unless it would be a second set of sums."""
        offer = self._offer
        assert offer is not None
        digest = hashlib.sha256(trained.codes).digest()
        summed = None
        if offer.gram is not None:
            assert self._last is not None
            summed = Summed(self._manifest_digest, self._last, digest)
            if self._store.left.digest(self._manifest_digest) not in (None, digest):
                why = "other sums of these samples have left this board; both would show what differs"
                self._store.left.refuse(offer.number, why)
                self._carry_out(self._session.handle(session.TrainingFailed(wire.Code.PRIVACY)))
                return
        update = wire.Update(
            offer.rid,
            self._did,
            offer.base,
            trained.samples,
            digest,
            len(trained.codes),
            trained.metrics,
            trained.ranges,
            None if summed else offer.encoding,
        )
        message = signed.sign(wire.encode(update), self._seed)
        owed = Journal(offer.number, message, trained.codes, trained.residual or b"", floats_to_bytes(offer.steps))
        self._store.put_journal(owed, Body(offer.rid, offer.number, len(trained.codes), trained.samples, summed))
        self._carry_out(self._session.handle(session.Trained()))

    async def _deliver(self, link: Link, *, again: bool) -> None:
        """Upload what the journal holds, and settle by the gateway's word."""
        owed = self._store.journal()
        if owed is None:  # forgotten with its samples by a command beside us
            self._carry_out(self._session.handle(session.Refused(0)))
            return
        try:
            receipt = await link.upload(owed.signed, owed.codes, again=again)
            word = wire.Status(receipt.status).name.lower()
            self._carry_out(self._session.handle(session.Receipted(receipt.status)))
        except RemoteError as fault:
            raise_if_out(fault)  # the update stays in the journal
            word = "refused"
            log.warning("update refused round=%d why=%r", owed.number, str(fault))
            self._carry_out(self._session.handle(session.Refused(fault.code)))
        self._emit("update", {"number": owed.number, "status": word, "training_s": self._training_s})

    def _settle(self, action: session.Settle) -> None:
        """The update that is owed is done with: what of it goes on is kept as the residual."""
        owed = self._store.journal()
        if owed is None:
            return
        solved = self._store.head().description.since or 0  # changes of heads before it mean nothing any more
        drop = action.drop or not owed.residual or solved >= owed.number  # without a residual: sums
        encoding = wire.decode(wire.Update, signed.payload_of(owed.signed)).encoding or wire.Encoding.INT8
        kept_whole = not (action.delivered or drop)
        residual = undelivered(owed.codes, owed.residual, encoding) if kept_whole else owed.residual
        self._store.settle(None if drop else residual, owed.steps, counted=action.delivered)

    # ---- the child ------------------------------------------------------------------------------------------

    def _start_child(self) -> None:
        """Start a job when there is something to do and no child at work.

        A round goes first: a board chooses its model when no round waits for it, or when it is too far behind.
        """
        trial = self._upgrade.job(self._settings.personal_epochs) if self._session.state is session.State.IDLE else None
        head = self._store.head()
        behind = head.version - self._store.kept().chosen_at
        training = self._session.state is session.State.TRAINING
        superseded = training or (self._store.get("last_round") or 0) > head.version
        choosing = behind > (MOST_BEHIND if superseded else 0)
        if self._child.works or not (training or choosing or trial):
            return
        if not self._has_room() or (not training and self._child.look()):
            return
        self._trying, self._would_not = trial is not None, 0
        offer = wire.encode(self._offer) if training and self._offer is not None else None
        self._given = head
        self._started = time.monotonic()
        floors = (self._last, int(self._floors.metrics), self._floors.min_samples, self._floors.min_class)
        plain = job.Job(
            int(choosing), self._settings.personal_epochs, head.signed, head.body, offer, None, None, *floors
        )
        self._child.start(wire.encode(trial or plain))

    def _switch(self, chosen: job.Chosen) -> None:
        """Record the choice, then make model/current.tflite of it; a cut between is finished at the next start."""
        kept, head = self._store.kept(), self._given
        if chosen.digest is None:
            kept = replace(kept, chosen_at=head.version, kind=chosen.kept)
        else:
            kept = Kept(head.version, chosen.kept, bool(chosen.fitted), chosen.digest, head, patch=chosen.patch)
        kept = replace(kept, previous=chosen.previous, fleet=chosen.fleet, personal=chosen.personal)
        kept = replace(kept, judged=chosen.judged, groups=chosen.groups, chosen_on=chosen.chosen_on)
        self._store.put_kept(kept)
        self._finish_switch()
        self._emit("model", {"number": head.version, "kept": chosen.kept, "chosen_on": chosen.chosen_on})
        log.info("model chosen round=%d kept=%s chosen_on=%d", head.version, chosen.kept, chosen.chosen_on)

    def _finish_switch(self) -> None:
        """Make model/current.tflite what was chosen; choose anew when that cannot be."""
        if not slots.put_right(self._directory, self._store):
            log.warning("model/current.tflite is not what was chosen; choosing again")
            self._store.put_kept(replace(self._store.kept(), chosen_at=-1))

    def _has_room(self) -> bool:
        """Is there room for what a round writes? Else head, model and journal stay as they are; heartbeats go on."""
        free = statedir.free_bytes(self._directory)
        if free >= ROOM_BYTES + 2 * self._manifest.size:  # the model's next file and the one in place
            return True
        log.warning("no room for a round free_bytes=%d directory=%s", free, self._directory)
        return False

    def _needs_nothing(self, rounds: int | None) -> bool:
        """Have ``rounds`` rounds counted, and is the last one's head here? What is left to do needs no gateway."""
        if rounds is None or self._store.rounds < rounds or self._session.state is not session.State.IDLE:
            return False
        return self._store.head().version >= (self._store.get("last_round") or 0)

    def _once_over(self, told: wire.Next, started: float) -> bool:
        """Has `--once` done its part? A gateway that asks back soon may be about to open, or to publish."""
        if time.monotonic() - started > ONCE_PATIENCE_S:
            return True
        waits_for_head = (self._store.get("last_round") or 0) > told.head
        return not waits_for_head and (self._answered is not None or told.poll_ms > SOON_S * 1000)
