# SPDX-License-Identifier: Apache-2.0
"""The models of a fleet: the one that its rounds train, and a newer one on its way to a share of the devices.

A device is told of the model that it should hold, tries it, and says which one it holds; a round is for one model
(docs/adr/0040-model-rollout.md).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_tiny import statedir
from fl_tiny.errors import ConfigError, DataError
from fl_tiny.files import read_bounded, write_atomic
from fl_tiny.gateway.gather import Kind, first_made, make_version
from fl_tiny.gateway.manifests import MODEL_LIMIT, fitting
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import OpenRound, Version, abort_open, insert_round, insert_version
from fl_tiny.learn.head import read_parameters, trained_part
from fl_tiny.learn.tflite import read_model
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.manifest import ManifestFile, spec_of

log = logging.getLogger(__name__)

BASE = "base.tflite"


@dataclass(frozen=True, slots=True)
class Held:
    """A model in memory, to be given to devices. first: its own head, by the number that devices know it under."""

    manifest: wire.Manifest
    signed: bytes
    digest: bytes  # of the manifest
    data: bytes
    canary: bytes | None
    first: Version


class Models:
    """What a running gateway knows of models. seed: the gateway's key, which signs heads."""

    def __init__(self, store: Store, directory: Path, seed: bytes) -> None:
        self._store, self._folder, self._seed = store, directory / statedir.MODEL, seed
        self._devices: dict[bytes, tuple[int, int | None]] = {
            did: (model, refused) for did, model, refused in store.rows("SELECT did, model, refused FROM holds")
        }
        self.first: int = store.get("first") or 0  # the number of the current model's own head
        row = store.rows("SELECT canary FROM model WHERE first=?", self.first)
        data = model_data(store, directory)
        self.current = self._held(store.get("manifest"), data, row[0][0] if row else None, store.version(self.first))
        self.staged: Held | None = None
        self._share, self._pk = 0.0, b""
        self._seen: Any = None

    def refresh(self) -> None:
        """Look for what a command beside us has published."""
        rows = self._store.rows(
            "SELECT counter, share, signed, canary, pk FROM model WHERE first IS NULL ORDER BY counter DESC LIMIT 1"
        )
        seen = rows[0][:2] if rows else None
        if seen == self._seen:
            return
        self._seen = seen
        if seen is None:
            self.staged = None
            return
        counter, self._share, message, canary, self._pk = rows[0]
        data = read_bounded(self._folder / file_of(counter), MODEL_LIMIT)
        self.staged = self._held(message, data, canary, 0)
        log.info("model published counter=%d name=%s share=%g", counter, self.staged.manifest.name, self._share)

    def is_carried(self, online: Collection[bytes]) -> bool:
        """May rounds go over to the staged model: is it for all, and do half of the devices here hold it?

        So a model that the devices refuse stops no rounds.
        """
        if self.staged is None or self._share < 1:
            return False
        holding = sum(self.knows(did) == self.staged.manifest.counter for did in online)
        return holding > 0 and 2 * holding >= len(online)

    def knows(self, did: bytes) -> int:
        """The counter of the model that a device holds; one that has never said so has just enrolled."""
        return self._devices.get(did, (self.current.manifest.counter, None))[0]

    def trains(self, did: bytes) -> bool:
        """Does a device hold the model that rounds are for?"""
        return self.knows(did) == self.current.manifest.counter

    def note(self, did: bytes, model: int | None, refusal: wire.Refusal | None) -> bool:
        """Keep what a device says of models; True when it holds another one than before."""
        held = self.knows(did)
        now, refused = model or held, self._devices.get(did, (0, None))[1]
        if refusal is None and now == held:
            return False  # nothing is written for a device that holds what all hold
        self._devices[did] = (now, refusal.counter if refusal else refused)
        with self._store.write() as db:
            db.execute(
                "INSERT INTO holds(did, model) VALUES(?,?) ON CONFLICT(did) DO UPDATE SET model=excluded.model",
                (did, now),
            )
            if refusal:
                row = (refusal.counter, refusal.code, refusal.why, did)
                db.execute("UPDATE holds SET refused=?, code=?, why=? WHERE did=?", row)
        if refusal:
            text = (did.hex()[:8], refusal.counter, refusal.code, refusal.why)
            log.warning("model refused device=%s counter=%d code=%d why=%r", *text)
        return now != held

    def forget(self, did: bytes) -> None:
        """A device enrols anew: it begins with the current model."""
        self._devices.pop(did, None)
        with self._store.write() as db:
            db.execute("DELETE FROM holds WHERE did=?", (did,))

    def wanted(self, did: bytes) -> Held | None:
        """The model that a device should take in place of the one it holds; None: it has it, or has refused it."""
        held, refused = self._devices.get(did, (self.current.manifest.counter, None))
        target = self.staged if self.staged and in_share(did, self._share) else self.current
        counter = target.manifest.counter
        return target if counter > held and counter != refused else None

    def head_number(self, did: bytes, newest: int) -> int:
        """The number of the newest head for the model that a device holds."""
        held = self.knows(did)
        if held == self.current.manifest.counter:
            return newest
        if self.staged and held == self.staged.manifest.counter:
            return 0
        later = self._store.rows("SELECT min(first) FROM model WHERE counter>? AND first IS NOT NULL", held)[0][0]
        return later - 1 if later else 0

    def head(self, did: bytes, newest: Version) -> Version:
        """That head itself."""
        number = self.head_number(did, newest.number)
        if self.staged and self.knows(did) == self.staged.manifest.counter:
            return self.staged.first
        return newest if number == newest.number else self._store.version(number)

    def new_head(self, did: bytes, newest: Version) -> bytes | None:
        """The signed head that names the model which a device should take; None: it holds what it should."""
        wanted = self.wanted(did)
        if wanted is None:
            return None
        return (newest if wanted is self.current else wanted.first).signed

    def named(self, name: str, *heads: Version) -> bytes | None:
        """A model, a canary or the body of a head by its name. heads: those to be had beside the models' own."""
        for head in heads:
            if name == wire.name_of(head.digest):
                return head.body
        for held in filter(None, (self.current, self.staged)):
            if name == wire.name_of(held.manifest.digest):
                return held.data
            if held.manifest.canary and name == wire.name_of(held.manifest.canary.digest):
                return held.canary
            if name == wire.name_of(held.first.digest):
                return held.first.body
        return None

    def manifest(self, name: str) -> bytes | None:
        """A signed manifest by its name."""
        for held in filter(None, (self.current, self.staged)):
            if name == wire.name_of(held.digest):
                return held.signed
        return None

    def complete(self) -> Version:
        """Rounds go over to the staged model: its own head is the next version, in one transaction."""
        assert self.staged is not None
        new, old = self.staged, self.current.manifest.counter
        number = self._store.head().number + 1
        self.current = self._held(new.signed, new.data, new.canary, number)
        with self._store.write() as db:
            abort_open(db, "a new model came")
            insert_version(db, self.current.first)
            db.execute("DELETE FROM strategy")  # what it and the sums remember is of the old head
            db.execute("DELETE FROM gram")
            db.execute("DELETE FROM meta WHERE key LIKE 'forget:%'")
            insert_round(db, OpenRound(os.urandom(8), number, number - 1, 0.0, Kind.MODEL.value), "published")
            db.execute("UPDATE round SET seconds=0 WHERE number=? AND kind=?", (number, Kind.MODEL.value))
            db.execute("UPDATE model SET first=? WHERE counter=?", (number, new.manifest.counter))
            db.execute("INSERT OR IGNORE INTO holds(did, model) SELECT did, ? FROM device", (old,))
            db.execute("INSERT OR IGNORE INTO meta VALUES('initial',?)", (old,))  # counter of the first model of all
            facts = {"manifest": new.signed, "model_pk": self._pk, "first": number}
            facts["model_file"] = file_of(new.manifest.counter)
            db.executemany("INSERT OR REPLACE INTO meta VALUES(?,?)", facts.items())
        for did in (row[0] for row in self._store.rows("SELECT did FROM holds")):
            self._devices.setdefault(did, (old, None))
        self.first, self.staged, self._seen = number, None, None
        return self.current.first

    def _held(self, message: bytes, data: bytes, canary: bytes | None, first: Version | int) -> Held:
        """first: the model's own head, or the number it is to have."""
        payload = signed.payload_of(message)
        manifest = wire.decode(wire.Manifest, payload)
        digest = hashlib.sha256(payload).digest()
        if isinstance(first, int):
            parameters = read_parameters(spec := spec_of(read_model(data), manifest))
            made = first_made(trained_part(spec, parameters))
            first = make_version(first, made, digest, self._seed, epoch=self._store.epoch)
        return Held(manifest, message, digest, data, canary, first)


def publish(directory: Path, store: Store, model_file: Path, file: ManifestFile, share: float) -> wire.Manifest:
    """Put a model up for a share of the fleet's devices; a running gateway acts within seconds.

    Raises: ConfigError for a lower counter or a smaller share than before, DataError for another key or model.
    """
    made = fitting(model_file, file)
    current = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
    if file.pk != (current.successor or store.get("model_pk")):
        raise DataError("the manifest is signed by another key than this fleet's", hint="fl-tiny fleet sign KEYS …")
    counter = made.manifest.counter
    if counter <= current.counter:
        raise ConfigError(f"counter {counter} is not above {current.counter}, the fleet's", hint="sign a higher one")
    rows = store.rows("SELECT counter, share, signed FROM model WHERE first IS NULL ORDER BY counter DESC LIMIT 1")
    before = rows[0] if rows else (0, 0.0, b"")
    if counter < before[0] or (counter == before[0] and file.signed != before[2]):
        raise ConfigError(f"counter {before[0]} is on its way already", hint="sign with a higher one")
    holding = store.rows("SELECT count(*) FROM holds WHERE model=?", before[0])[0][0]
    if share < before[1] and holding:
        raise ConfigError(
            f"a share of {share:g} is less than the {before[1]:g} of counter {before[0]}", hint="it only grows"
        )
    write_atomic(directory / statedir.MODEL / file_of(counter), made.data)
    with store.write() as db:
        db.execute("DELETE FROM model WHERE first IS NULL AND counter<?", (counter,))
        db.execute(
            "INSERT INTO model(counter, pk, signed, canary, share) VALUES(?,?,?,?,?)"
            " ON CONFLICT(counter) DO UPDATE SET share=excluded.share WHERE first IS NULL",
            (counter, file.pk, file.signed, file.canary, share),
        )
    return made.manifest


def in_share(did: bytes, share: float) -> bool:
    """Is a device among this share of all? Once it is, it stays so while the share grows."""
    return int.from_bytes(hashlib.sha256(b"rollout" + did).digest()[:4], "big") < share * 2**32


def model_data(store: Store, directory: Path) -> bytes:
    """The .tflite that the fleet trains."""
    return read_bounded(directory / statedir.MODEL / (store.get("model_file") or BASE), MODEL_LIMIT)


def file_of(counter: int) -> str:
    """The name of a published model's file below DIR/model."""
    return f"{counter}.tflite"


def rollout(store: Store) -> dict[str, Any] | None:
    """What ``gateway status`` says of a model on its way, or of devices that are not with the fleet's yet."""
    current = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest"))).counter
    rows = store.rows("SELECT counter, share FROM model WHERE first IS NULL ORDER BY counter DESC LIMIT 1")
    counter, share = rows[0] if rows else (current, 1.0)
    holding, refused = store.rows(
        "SELECT coalesce(sum(coalesce(model, ?)=?), 0), coalesce(sum(coalesce(refused, 0)=?), 0)"
        " FROM device LEFT JOIN holds USING(did) WHERE state='active'",
        current,
        counter,
        counter,
    )[0]
    return {"counter": counter, "share": share, "holding": holding, "refused": refused}
