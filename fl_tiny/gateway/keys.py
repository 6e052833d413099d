# SPDX-License-Identifier: Apache-2.0
"""The gateway's key, which signs heads: which of its files holds the one in use, and a new one in its place.

1. DIR/secret/gateway.key.next is written. 2. One transaction makes its public half the gateway's key, keeps the old
key's signed hand-over, and signs every head anew. 3. The old secret is overwritten, and the file takes its place. Cut
before 2 the old key is in use, afterwards the new one; the next start or the same command finishes the rest.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from fl_tiny import statedir
from fl_tiny.errors import ConfigError, DataError
from fl_tiny.files import overwrite, sync_directory
from fl_tiny.gateway.store import HINT, Store
from fl_tiny.protocol import handover, signed
from fl_tiny.protocol.wire import MOST_KEYS

log = logging.getLogger(__name__)

GATEWAY_KEY, NEW_KEY = "gateway.key", "gateway.key.next"


@dataclass(frozen=True, slots=True)
class GatewayKey:
    """A gateway's key as devices know it. pk: its public half.   serial: how many keys came before it."""

    pk: bytes
    serial: int


def seed_of(directory: Path, store: Store) -> bytes:
    """The secret half of the key in use. Raises: DataError when DIR does not have it; as ``statedir.read_secret``."""
    for name in (GATEWAY_KEY, NEW_KEY):
        if name == GATEWAY_KEY or (directory / statedir.SECRET / name).exists():
            seed = statedir.read_secret(directory, name)
            if len(seed) == signed.SEED_BYTES and signed.public_key(seed) == store.get("gateway_pk"):
                return seed
    raise DataError(f"{directory / statedir.SECRET / GATEWAY_KEY} is not this gateway's key", hint=HINT)


def key_of(store: Store) -> GatewayKey:
    """The key in use."""
    serial = store.rows("SELECT coalesce(max(serial), 0) FROM handover")[0][0]
    return GatewayKey(store.get("gateway_pk"), serial)


def public_keys(store: Store) -> list[bytes]:
    """The public key in use and the former ones, newest first."""
    return [store.get("gateway_pk"), *(row[0] for row in store.rows("SELECT pk FROM handover ORDER BY serial DESC"))]


def handover_to(store: Store, serial: int) -> bytes | None:
    """The signed hand-over to key number ``serial``; None when there is no such key."""
    rows = store.rows("SELECT signed FROM handover WHERE serial=?", serial)
    return rows[0][0] if rows else None


def finish(directory: Path, store: Store) -> None:
    """Finish or drop what a cut left of a new key; safe to repeat. The caller holds DIR's lock."""
    secret = directory / statedir.SECRET
    if not (secret / NEW_KEY).exists():
        return
    seed = statedir.read_secret(directory, NEW_KEY)
    if len(seed) == signed.SEED_BYTES and signed.public_key(seed) == store.get("gateway_pk"):
        old = statedir.read_secret(directory, GATEWAY_KEY)
        overwrite(secret / GATEWAY_KEY, old, bytes(len(old)))
        (secret / NEW_KEY).replace(secret / GATEWAY_KEY)
    else:
        (secret / NEW_KEY).unlink()
    sync_directory(secret)


def rekey(directory: Path) -> tuple[GatewayKey, GatewayKey]:
    """Give DIR's gateway a new key; the one before and the new one. Devices take it by the hand-over.

    Raises: ConfigError when a gateway runs in DIR, or when it has had as many keys as there may be.
    """
    store = Store.open(directory / statedir.DATABASE)
    try:
        with statedir.locked(directory):
            finish(directory, store)
            before = key_of(store)
            if before.serial >= MOST_KEYS:
                raise ConfigError(f"this gateway has had {MOST_KEYS} new keys", hint="begin a new fleet")
            old = seed_of(directory, store)
            new = os.urandom(signed.SEED_BYTES)
            after = GatewayKey(signed.public_key(new), before.serial + 1)
            statedir.write_secret(directory, NEW_KEY, new)
            _hand_over(store, before, after, old, new)
            finish(directory, store)
            return before, after
    finally:
        store.close()


def _hand_over(store: Store, before: GatewayKey, after: GatewayKey, old: bytes, new: bytes) -> None:
    message = handover.handed_over(after.serial, old, new)
    heads = store.rows("SELECT number, signed FROM version")
    anew = [(signed.sign(signed.payload_of(head), new), number) for number, head in heads]
    with store.write() as db:
        db.execute("INSERT INTO handover VALUES(?,?,?)", (after.serial, before.pk, message))
        db.execute("UPDATE meta SET value=? WHERE key='gateway_pk'", (after.pk,))
        db.executemany("UPDATE version SET signed=? WHERE number=?", anew)
