# SPDX-License-Identifier: Apache-2.0
"""Who a device is, beyond its key: wrong tries at codes, enrolments left half-way, copies of a device, new keys."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

from fl_tiny.errors import RemoteError
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Device, check_unused, reject_updates
from fl_tiny.protocol import wire
from fl_tiny.protocol.identity import Identity, Kind, identity_of
from fl_tiny.protocol.rekey import Rekey
from fl_tiny.protocol.wire import Code

log = logging.getLogger(__name__)

WRONG_TRIES = 5  # with another secret; then a pairing code is burnt
PENDING_S = 60.0  # from `enrol` to the first `register`
TELL_S = 0.8  # a device that has just been revoked may ask so long, and is told
OUT = ("quarantined", "revoked")  # states in which a device takes no part
TWO_COPIES = "two copies of this device are in use"
OLDER_STATE = "its state is older than what this gateway has seen of it: a restored image?"


class Identities:
    """One fleet's identities; ``now`` is ``time.monotonic()``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.cut: Callable[[Identity], None] = lambda who: None  # ends an identity's session
        self._pending: dict[bytes, float] = {}
        self._out: dict[bytes, float] = {}  # since when we know of it
        self._peers: dict[bytes, bytes] = {}  # by which key each came

    def key_of(self, identity: str) -> bytes | None:
        """The PSK of an identity, or None: what the DTLS front door asks."""
        who = identity_of(identity)
        if who is None:
            return None
        if who.kind is Kind.PAIRING:
            code = self._store.pairing(who.id)
            return code.secret if code else None
        if who.kind is Kind.PEER:
            psk = self._store.peers().get(who.id)
            if psk is not None:
                self._peers[who.id] = psk
            return psk
        device = self._store.device(who.id)
        if device is None or device.state == "revoked":
            return None
        if who.kind is Kind.DEVICE:
            return device.psk
        rows = self._store.rows("SELECT psk FROM rekey WHERE did=?", who.id)
        return rows[0][0] if rows else None

    def wrong_key(self, identity: str) -> None:
        """A handshake used another key than the identity's: five of them burn a pairing code."""
        who = identity_of(identity)
        if who is None or who.kind is not Kind.PAIRING:
            log.debug("wrong key identity=%s", identity[:40])  # anybody can cause it, at any rate
            return
        token = who.id
        if self._store.pairing(token) is None:
            return
        with self._store.write() as db:
            db.execute(
                "INSERT INTO wrong VALUES(?,1) ON CONFLICT(token) DO UPDATE SET tries=tries+1",
                (token,),
            )
            tries = db.execute("SELECT tries FROM wrong WHERE token=?", (token,)).fetchone()[0]
            if tries >= WRONG_TRIES:
                db.execute("DELETE FROM pairing WHERE token=?", (token,))
                db.execute("DELETE FROM wrong WHERE token=?", (token,))
        log.warning("pairing code tried with a wrong secret tries=%d burnt=%s", tries, tries >= WRONG_TRIES)

    def enrolled(self, did: bytes, now: float) -> None:
        """A device has enrolled, perhaps anew: what was known of its starts and keys is void."""
        self._pending[did] = now
        with self._store.write() as db:
            for table in ("boot", "rekey"):
                db.execute(f"DELETE FROM {table} WHERE did=?", (did,))  # noqa: S608 - ours alone
        self._cut_device(did)  # by an earlier PSK

    def tick(self, now: float) -> None:
        """Drop devices that have been pending for too long; they may use their code again."""
        pending = {row[0] for row in self._store.rows("SELECT did FROM device WHERE state='pending'")}
        for did in set(self._pending) - pending:
            del self._pending[did]
        for did in pending:
            if now - self._pending.setdefault(did, now) > PENDING_S:
                with self._store.write() as db:
                    db.execute("DELETE FROM device WHERE did=? AND state='pending'", (did,))
                del self._pending[did]
                log.warning("enrolment given up device=%s: it did not register in %.0f s", did.hex()[:8], PENDING_S)

    @property
    def out(self) -> set[bytes]:
        """Who takes no part, as ``cut_out`` has found."""
        return set(self._out)

    def cut_out(self, now: float) -> None:
        """End the sessions of devices that went out and had the time to ask and be told why, and of revoked peers."""
        out = [d.did for d in self._store.devices() if d.state in OUT]
        self._out = {did: self._out.get(did, now) for did in out}
        ripe = [did for did, since in self._out.items() if TELL_S <= now - since < math.inf]
        self._out.update(dict.fromkeys(ripe, -math.inf))  # once
        for did in ripe:
            self._cut_device(did)
        peers = self._store.peers() if self._peers else {}
        for name in [name for name, psk in self._peers.items() if peers.get(name) != psk]:
            del self._peers[name]
            self.cut(Identity(Kind.PEER, name))

    def started(self, device: Device, register: wire.Register) -> bool:
        """A device has come; True when it may have begun anew, False for the same start as before over a new session.

        A start never returns to an earlier boot id, nor has it the number of another; an older image counts less. One
        that says nothing is served as before while its device has never counted (``check_uncounted``).
        Raises: RemoteError when it is a copy, which puts the device in quarantine, or when it is there already.
        """
        if device.state == "quarantined":
            raise RemoteError(*self.trouble(device.did))
        if register.boots is None or register.boot is None:
            return True
        rows = self._store.rows("SELECT boots, boot, before FROM boot WHERE did=?", device.did)
        boots, boot, before = rows[0] if rows else (-1, b"", b"")
        if register.boot == boot:
            return False
        if register.boot == before or register.boots == boots:
            self._quarantine(device.did, TWO_COPIES, Code.QUARANTINED)
        if register.boots < boots:
            self._quarantine(device.did, OLDER_STATE, Code.RESTORED)
        with self._store.write() as db:
            row = (device.did, register.boots, register.boot, boot)
            db.execute("INSERT OR REPLACE INTO boot(did, boots, boot, before) VALUES(?,?,?,?)", row)
        return True

    def check_uncounted(self, did: bytes) -> None:
        """A session has not said which start of its device it is of. Raises: RemoteError when others have.

        Else two copies that are both at work would take turns over sessions, and never be seen.
        """
        if self._store.rows("SELECT 1 FROM boot WHERE did=?", did):
            raise RemoteError("register first, with the number of this start", code=Code.PHASE)

    def trouble(self, did: bytes) -> tuple[str, str, Code]:
        """Why a device is in quarantine: a sentence, a hint, a problem code."""
        rows = self._store.rows("SELECT why FROM boot WHERE did=?", did)
        why = (rows[0][0] if rows else None) or TWO_COPIES
        code = Code.RESTORED if why == OLDER_STATE else Code.QUARANTINED
        return why, "fl-tiny gateway release DIR DEVICE, once there is one of it", code

    def rekey(self, device: Device, asked: Rekey) -> bytes:
        """Keep a device's new key, not in use yet, and give a new PSK. The same may be asked again.

        Raises: RemoteError with Code.CONFLICT for another generation, or a key that another device has or waits with.
        """
        rows = self._store.rows("SELECT gen FROM rekey WHERE did=?", device.did)
        gen = rows[0][0] if rows else 0
        if asked.gen != gen + 1:
            raise RemoteError(f"generation {asked.gen}, {gen + 1} is the next", code=Code.CONFLICT)
        psk = os.urandom(32)
        with self._store.write() as db:
            check_unused(db, device.did, asked.pk)
            db.execute(
                "INSERT INTO rekey VALUES(?,?,?,?) ON CONFLICT(did) DO UPDATE SET pk=excluded.pk, psk=excluded.psk",
                (device.did, gen, asked.pk, psk),
            )
        self.cut(Identity(Kind.NEXT, device.did))  # by the PSK that was given before
        return psk

    def use_new_key(self, did: bytes) -> None:
        """A device has registered with its new PSK: key and PSK are the new ones, and the old ones open nothing."""
        with self._store.write() as db:
            found = db.execute("SELECT pk, psk FROM rekey WHERE did=? AND psk IS NOT NULL", (did,)).fetchone()
            if found is None:
                return
            db.execute("UPDATE device SET pk=?, psk=? WHERE did=?", (*found, did))
            db.execute("UPDATE rekey SET gen=gen+1, pk=NULL, psk=NULL WHERE did=?", (did,))
        self.cut(Identity(Kind.DEVICE, did))
        log.info("device has a new key device=%s", did.hex()[:8])

    def _cut_device(self, did: bytes) -> None:
        for kind in (Kind.DEVICE, Kind.NEXT):
            self.cut(Identity(kind, did))

    def _quarantine(self, did: bytes, why: str, code: Code) -> None:
        with self._store.write() as db:
            db.execute("UPDATE device SET state='quarantined' WHERE did=? AND state!='revoked'", (did,))
            db.execute("UPDATE boot SET why=? WHERE did=?", (why, did))
            reject_updates(db, did)
        log.warning("quarantine device=%s code=%d why=%r", did.hex()[:8], code, why)
        raise RemoteError(*self.trouble(did))


def release(store: Store, did: bytes) -> None:
    """Take a device out of quarantine; its next start begins a new count."""
    with store.write() as db:
        db.execute("UPDATE device SET state='active' WHERE did=? AND state='quarantined'", (did,))
        db.execute("DELETE FROM boot WHERE did=?", (did,))
