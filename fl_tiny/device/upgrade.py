# SPDX-License-Identifier: Apache-2.0
"""A device's way to a newer model: fetched into the spare slot, tried in the child, switched to, confirmed or left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_tiny import statedir
from fl_tiny.device import slots
from fl_tiny.device.gatewaykey import with_key
from fl_tiny.device.job import Job, Tried
from fl_tiny.device.layout import CANARY, SLOTS
from fl_tiny.device.link import MODEL_LIMIT, Link, raise_if_out
from fl_tiny.device.store import DeviceStore, HeldHead
from fl_tiny.errors import RemoteError
from fl_tiny.files import write_atomic
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.fields import cut_text
from fl_tiny.protocol.release import WHY_BYTES
from fl_tiny.protocol.wire import Code

log = logging.getLogger(__name__)

DEATHS = 3  # of the child, until they are the model's doing
DAY_S = 86_400.0  # between two looks at the model's file


@dataclass(frozen=True, slots=True)
class Trial:
    """What the child is to try. confirm: it is in use already."""

    slot: str
    manifest: bytes
    head: HeldHead
    confirm: bool


class Upgrade:
    """One device's models; the agent asks at each heartbeat, and hands on what the child says."""

    def __init__(self, directory: Path, store: DeviceStore, emit: Callable[[str, dict[str, Any]], None]) -> None:
        self._directory, self._store, self._emit = directory, store, emit
        self.trial: Trial | None = None
        self._told = False  # the gateway knows of our refusal, in this session
        self._deaths = 0
        self._looked = time.monotonic()
        self.damaged = slots.boot(directory, store) is slots.Boot.FETCH
        if store.get("tries") is not None:
            self._confirm_next()

    def connected(self) -> None:
        """A session begins."""
        self._told = False

    def heartbeat(self) -> tuple[int, wire.Refusal | None]:
        """What a heartbeat says of models: the counter held, and once a session what was refused."""
        refusal = None if self._told else slots.refusal(self._store)
        self._told = True
        return slots.manifest_of(self._store.get("manifest")).counter, refusal

    async def consider(self, link: Link, counter: int | None) -> None:
        """Fetch the model ``counter`` that the gateway wants us to hold, unless it was refused before."""
        if time.monotonic() - self._looked > DAY_S:
            self._looked = time.monotonic()
            whole = slots.is_whole(slots.base_path(self._directory, self._store), self._store.get("manifest"))
            self.damaged = not whole
        if self.damaged:
            await self._repair(link)
        if counter is None or self.trial is not None or counter == self._store.get("refused"):
            return
        try:
            self.trial = await self._fetch(link)
        except RemoteError as fault:
            if fault.code not in (Code.SIGNATURE, Code.DOWNGRADE, Code.CONFLICT, Code.SCHEMA, Code.SHAPE, Code.QUOTA):
                raise
            self._refuse(counter, fault)

    def job(self, epochs: int) -> Job | None:
        """The job of trying, when there is something to try."""
        if self.trial is None:
            return None
        head = self.trial.head
        return Job(0, epochs, head.signed, head.body, None, self.trial.slot, self.trial.manifest)

    def tried(self, answer: Tried) -> bool:
        """Act by what the child found; True when another model is in use now."""
        assert self.trial is not None
        trial, self.trial = self.trial, None
        manifest = slots.manifest_of(trial.manifest)
        (self._directory / statedir.MODEL / CANARY).unlink(missing_ok=True)
        if trial.confirm and answer.code == 0:
            slots.confirm(self._store)
            self._say(manifest.counter, "confirmed")
            return False
        if trial.confirm:
            if self._store.row("SELECT 1 FROM slot") is None:
                log.error("model fails and there is no other why=%r", answer.why)
                return False
            slots.fall_back(self._directory, self._store, answer.why or "", answer.code)
            self._told = False
            self._say(manifest.counter, "refused", answer.why)
            return True
        if answer.code != 0:
            self._refuse(manifest.counter, RemoteError(answer.why or "", code=answer.code))
            return False
        same = bool(answer.same)
        slots.switch(self._directory, self._store, trial.manifest, trial.head, same_features=same)
        self._say(manifest.counter, "switched")
        self._confirm_next()
        return True

    def failed(self, why: str) -> bool:
        """The child has died in a trial, or of it; as ``tried``.

        A board that is short of memory kills it too, so it is the third death that counts.
        """
        self._deaths += 1
        if self._deaths < DEATHS:
            log.warning("trial cut short why=%r", why)
            self.trial = self.trial if self.trial is not None and self.trial.confirm else None
            return False
        self._deaths = 0
        return self.tried(Tried(int(Code.CANARY), cut_text(f"the trial failed: {why}", WHY_BYTES)))

    async def _fetch(self, link: Link) -> Trial | None:
        """The model the gateway names, in the spare slot. Raises: RemoteError when it is not to be taken."""
        found = await with_key(self._store, link, link.newer)
        if found is None:
            return None
        head, message = found
        manifest = slots.accepted(message, self._store)
        named = wire.decode(wire.Head, signed.payload_of(head))
        if named.manifest != signed.digest(signed.payload_of(message)):
            raise RemoteError("the head names another manifest", code=Code.CONFLICT)
        if manifest.size > MODEL_LIMIT or named.size != manifest.body_size:
            raise RemoteError(f"a model of {manifest.size} B, a head of {named.size} B", code=Code.QUOTA)
        slot = slots.spare(self._store)
        path = self._directory / statedir.MODEL / SLOTS[slot]
        if slots.digest_of(path) != manifest.digest:  # else a cut came behind the fetch
            write_atomic(path, await link.body(manifest.digest, manifest.size))
        if manifest.canary is not None:
            canary = await link.body(manifest.canary.digest, manifest.canary.size)
            write_atomic(self._directory / statedir.MODEL / CANARY, canary)
        body = await link.body(named.digest, named.size)
        return Trial(slot, message, HeldHead(named.version, head, body), confirm=False)

    async def _repair(self, link: Link) -> None:
        """The file in use is damaged: the gateway has it, unless the fleet has gone on to another model."""
        manifest = slots.manifest_of(self._store.get("manifest"))
        self.damaged = False  # until the next look, or the next start, which may find the other slot
        try:
            data = await link.body(manifest.digest, manifest.size)
        except RemoteError as fault:
            raise_if_out(fault)
            log.error("model damaged counter=%d and not to be had why=%r", manifest.counter, str(fault))
            return
        write_atomic(slots.base_path(self._directory, self._store), data)
        log.warning("model fetched again counter=%d", manifest.counter)

    def _confirm_next(self) -> None:
        store = self._store
        self.trial = Trial(store.get("slot") or "a", store.get("manifest"), store.head(), confirm=True)

    def _refuse(self, counter: int, fault: RemoteError) -> None:
        slots.refuse(self._store, counter, fault)
        self._told = False
        self._say(counter, "refused", fault.what)

    def _say(self, counter: int, state: str, why: str | None = None) -> None:
        self._emit("upgrade", {"counter": counter, "state": state, **({"why": why} if why else {})})
