# SPDX-License-Identifier: Apache-2.0
"""What keeps a whole fleet from going on, in words for the log, `gateway status`, `gateway doctor` and the page."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from fl_tiny.gateway.keys import key_of
from fl_tiny.gateway.store import Store
from fl_tiny.protocol import signed, wire

log = logging.getLogger(__name__)

LOOK_S = 5.0  # between two looks of a running gateway
AGAIN_S = 3600.0  # until the same is logged again


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong, and the way out."""

    what: str
    todo: str

    def __str__(self) -> str:
        return f"{self.what}: {self.todo}"


def troubles(store: Store) -> list[Trouble]:
    """All that there is, for this gateway as its ledger has it."""
    return [found for found in (_newer_model(store), _newer_key(store)) if found is not None]


def holds_key(store: Store, did: bytes, serial: int) -> None:
    """A device holds the gateway's key number ``serial``: keep the highest that is later than ours."""
    fact = f"key_of:{did.hex()}"
    if serial > max(key_of(store).serial, store.get(fact) or 0):
        store.put(**{fact: serial})


def holds_our_key(store: Store, did: bytes) -> None:
    """A device has enrolled, perhaps anew."""
    fact = f"key_of:{did.hex()}"
    if store.get(fact) is not None:
        store.put(**{fact: None})


class Teller:
    """Logs each trouble when it comes, and then seldom. ``now`` is ``time.monotonic()``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looked = -math.inf
        self._logged: dict[str, float] = {}  # by the way out: counts change while devices come by

    def tick(self, now: float) -> None:
        """Look, when it is time."""
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        found = {each.todo: each for each in troubles(self._store)}
        self._logged = {todo: at for todo, at in self._logged.items() if todo in found}
        for todo, each in found.items():
            if now - self._logged.get(todo, -math.inf) >= AGAIN_S:
                self._logged[todo] = now
                log.warning("fleet stands still why=%r", str(each))


def _newer_model(store: Store) -> Trouble | None:
    """Boards that hold a later model than any that this gateway knows: it was restored from an older backup."""
    current = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest"))).counter
    known = store.rows("SELECT max(?, coalesce(max(counter), 0)) FROM model", current)[0][0]
    count, counter, did = store.rows(
        "SELECT count(*), max(model), min(did) FROM holds JOIN device USING(did) WHERE state='active' AND model>?",
        known,
    )[0]
    if not count:
        return None
    return Trouble(
        f"active devices hold the model of counter {counter} ({count}, such as {did.hex()[:8]}), the newest here is"
        f" {known}: was this gateway restored from a backup before that rollout?",
        f"publish the manifest of counter {counter} again: fl-tiny gateway publish {store.folder} M --model FILE",
    )


def _newer_key(store: Store) -> Trouble | None:
    """Boards that hold a later key of this gateway than the one it has: the same, of `gateway rekey`."""
    serial = key_of(store).serial
    count, newest, did = store.rows(
        "SELECT count(*), max(value), min(did) FROM meta JOIN device ON key='key_of:' || lower(hex(did))"
        " WHERE state='active' AND value>?",
        serial,
    )[0]
    if not count:
        return None
    return Trouble(
        f"active devices hold this gateway's key number {newest} ({count}, such as {did.hex()[:8]}), the newest here is"
        f" {serial}: was it restored from a backup before `gateway rekey`?",
        "restore a later backup, or enrol these devices again",
    )
