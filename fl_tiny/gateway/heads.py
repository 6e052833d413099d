# SPDX-License-Identifier: Apache-2.0
"""The heads that a gateway has published: listed, exported, an earlier one published again as a new version."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fl_tiny import statedir
from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.files import write_atomic
from fl_tiny.gateway.forget import PATIENCE_S, POLL_S
from fl_tiny.gateway.gather import Kind, Made, delta_to, make_version
from fl_tiny.gateway.keys import seed_of
from fl_tiny.gateway.models import model_data
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import OpenRound, Version, abort_open, insert_round, insert_version
from fl_tiny.learn.head import whole
from fl_tiny.learn.requant import patch, requantise
from fl_tiny.learn.tflite import read_model
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.aggregate import Published
from fl_tiny.protocol.manifest import spec_of
from fl_tiny.protocol.update import HeadBody, decode_head

WHY = "an earlier head was published again"


def listed(store: Store) -> list[dict[str, Any]]:
    """What ``gateway heads`` reports, oldest first. accuracy: over all samples that devices held out, when they were to
    train from the head; held: how many these were. model: the counter of the model that the head is for; null for
    those of a model that this gateway began with before it kept that number."""
    rows = store.rows(
        "SELECT v.number, coalesce(made.kind, 'model'), made.why, coalesce(counted.updates, 0), measured.accuracy,"
        " coalesce(measured.held, 0), v.digest, (SELECT max(counter) FROM model WHERE first<=v.number) FROM version v"
        " LEFT JOIN round made ON made.number=v.number AND made.state='published'"
        " LEFT JOIN (SELECT consumed_by, count(*) updates FROM ledger GROUP BY consumed_by) counted"
        " ON counted.consumed_by=v.number"
        " LEFT JOIN (SELECT base, sum(held) held, sum(held * accuracy) / sum(held) accuracy FROM ledger"
        " JOIN round USING(rid) WHERE held>0 AND accuracy IS NOT NULL GROUP BY base) measured"
        " ON measured.base=v.number ORDER BY v.number"
    )
    first = store.get("initial") or (None if store.get("first") else _manifest(store).counter)
    return [
        {
            "number": number,
            "kind": kind,
            "of": int(why) if kind == Kind.ROLLBACK.value else None,
            "updates": updates,
            "accuracy": accuracy,
            "held": held,
            "digest": digest.hex(),
            "model": first if counter is None else counter,
        }
        for number, kind, why, updates, accuracy, held, digest, counter in rows
    ]


def find(store: Store, number: int) -> Version:
    """The head of this number, of the fleet's model. Raises: DataError when there is none."""
    last = store.head().number
    if not 0 <= number <= last:
        raise DataError(f"there is no head {number}, the last is {last}", hint="fl-tiny gateway heads DIR lists them")
    version = store.version(number)
    if wire.decode(wire.Head, signed.payload_of(version.signed)).manifest != _manifest_digest(store):
        first = store.get("first") or 0
        raise DataError(
            f"head {number} is of another model than the fleet's, whose heads begin with {first}",
            hint="an earlier model comes back by fl-tiny fleet sign with a higher counter, and gateway publish",
        )
    return version


def export(directory: Path, out: Path, number: int | None = None) -> Version:
    """Write the model with a head to ``out``, all or nothing, and return that version. number: None: the last head's.

    Raises: DataError when there is no head of this number and of the fleet's model.
    """
    store = Store.open(directory / statedir.DATABASE, reading=True)
    version = store.head() if number is None else find(store, number)
    data = model_data(store, directory)
    manifest = _manifest(store)
    if version.number > (store.get("first") or 0):
        head = wire.decode(wire.Head, signed.payload_of(version.signed))
        spec = spec_of(read_model(data), manifest)
        parameters = whole(spec, decode_head(HeadBody(version.body, head.scales), manifest.shapes))
        spans = list(zip(head.ranges[0::2], head.ranges[1::2], strict=True)) if head.ranges else None
        data = patch(data, spec, requantise(spec, parameters, spans))
    write_atomic(out, data)
    return version


def roll_back(directory: Path, number: int) -> Version:
    """Publish an earlier head again; by the gateway that runs in DIR, or here when none does.

    Raises: DataError when there is none that may come back; EnvironmentFault when a running gateway does not act.
    """
    store = Store.open(directory / statedir.DATABASE)
    try:
        _may_return(store, number)
        before = store.head().number
        store.put(rollback=number)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if not statedir.is_running(directory):
                with statedir.locked(directory):
                    carry_out(store, seed_of(directory, store))
            if store.get("rollback") is None:
                return _outcome(store, number, before)
            time.sleep(POLL_S)
        raise EnvironmentFault(
            f"the gateway has not acted within {PATIENCE_S:.0f} s", hint="it does so at its next start"
        )
    finally:
        store.close()


def carry_out(store: Store, seed: bytes) -> Version | None:
    """Do what a command has asked for, in one transaction; None when nothing was, or when it may be done no more.

    Only DIR's owner may: seed is the gateway's key.
    """
    number = store.get("rollback")
    if number is None:
        return None
    try:
        old = _may_return(store, number)
    except DataError:  # a model or another head came in between: the command says so
        store.put(rollback=None)
        return None
    newest, head = store.head(), wire.decode(wire.Head, signed.payload_of(old.signed))
    body = HeadBody(old.body, head.scales)
    scales = wire.decode(wire.Head, signed.payload_of(newest.signed)).scales
    delta = delta_to(body, newest, scales, _manifest(store).shapes)
    made = Made(Published(body, b""), old.steps, head.ranges, delta)
    version = make_version(newest.number + 1, made, head.manifest, seed, since=newest.number + 1, epoch=store.epoch)
    rid = os.urandom(8)
    with store.write() as db:
        abort_open(db, WHY)
        insert_version(db, version)
        db.execute("UPDATE version SET residual=x'' WHERE number=?", (newest.number,))
        db.execute("DELETE FROM strategy")  # it remembers the rounds that are taken back
        insert_round(db, OpenRound(rid, version.number, newest.number, 0.0, Kind.ROLLBACK.value), "published")
        db.execute("UPDATE round SET seconds=0, why=? WHERE rid=?", (str(number), rid))
        db.execute("DELETE FROM meta WHERE key='rollback'")
    return version


def _may_return(store: Store, number: int) -> Version:
    """The head of this number. Raises: DataError when it must not be published again."""
    version = find(store, number)
    if number == store.head().number:
        raise DataError(f"head {number} is the one in use", hint="fl-tiny gateway heads DIR lists the earlier ones")
    forgotten = store.rows("SELECT max(number) FROM round WHERE kind='forget' AND state='published'")[0][0]
    if forgotten is not None and number < forgotten:
        raise DataError(f"head {number} knows a device that head {forgotten} has forgotten", hint="choose a later one")
    return version


def _outcome(store: Store, number: int, before: int) -> Version:
    """The head that came of a request."""
    query = "SELECT max(number) FROM round WHERE kind=? AND why=? AND number>?"
    found = store.rows(query, Kind.ROLLBACK.value, str(number), before)[0][0]
    if found is None:
        _may_return(store, number)  # says why not
        raise EnvironmentFault("another command was quicker", hint="give the command again")
    return store.version(found)


def _manifest(store: Store) -> wire.Manifest:
    return wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))


def _manifest_digest(store: Store) -> bytes:
    return signed.digest(signed.payload_of(store.get("manifest")))
