# SPDX-License-Identifier: Apache-2.0
"""Two places for a model on a board: the one in use, and one that a new model is put into, tried and fallen back from.

All of a switch is one transaction of the device's database; files follow it and are put right at the next start.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from enum import Enum
from pathlib import Path

from fl_tiny import files, statedir
from fl_tiny.device import derived
from fl_tiny.device.layout import BASE, CURRENT, FORMER, SLOTS
from fl_tiny.device.schema import CHOICE
from fl_tiny.device.store import DeviceStore, HeldHead, Kept, add_head, drop_unused, drop_update, put_choice
from fl_tiny.errors import DataError, RemoteError
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.fields import cut_text
from fl_tiny.protocol.release import WHY_BYTES

log = logging.getLogger(__name__)

TRIES = 3  # starts of the daemon that a new model may take without a good inference


class Boot(Enum):
    """Which model a start is to use."""

    KEEP = "keep"  # the one in use
    TRY = "try"  # the one in use, which has one try less now
    FALL_BACK = "fall back"  # the other one
    FETCH = "fetch"  # neither is whole: the gateway has it


def verdict(tries: int | None, *, whole: bool, other_whole: bool) -> Boot:
    """What to start with. tries: those left to a model that is not confirmed, None for a confirmed one.

    whole, other_whole: is the file of the slot in use, and of the other one, what its manifest says?
    """
    if whole and (tries is None or tries > 0):
        return Boot.KEEP if tries is None else Boot.TRY
    if other_whole:
        return Boot.FALL_BACK
    return Boot.KEEP if whole else Boot.FETCH


def manifest_of(message: bytes) -> wire.Manifest:
    """The manifest in a signed message that was checked when it came."""
    return wire.decode(wire.Manifest, signed.payload_of(message))


def base_path(directory: Path, store: DeviceStore) -> Path:
    """The file of the fleet's model in use."""
    return directory / statedir.MODEL / SLOTS.get(store.get("slot") or "a", BASE)


def spare(store: DeviceStore) -> str:
    """The slot that a new model goes into."""
    return "b" if (store.get("slot") or "a") == "a" else "a"


def accepted(message: bytes, store: DeviceStore) -> wire.Manifest:
    """A newer model's manifest. Raises: RemoteError when the fleet's key did not sign it, or it is no newer one."""
    manifest = wire.decode(wire.Manifest, signed.verify(message, signer(store)))
    if manifest.counter < floor(store):
        why = f"counter {manifest.counter} is below {floor(store)}, which this device has confirmed"
        raise RemoteError(why, code=wire.Code.DOWNGRADE)
    if manifest.counter == manifest_of(store.get("manifest")).counter:
        raise RemoteError(f"counter {manifest.counter} is the one held", code=wire.Code.DOWNGRADE)
    return manifest


def signer(store: DeviceStore) -> bytes:
    """The public key that signs the next model: the one of the model held, unless that names a successor."""
    found: bytes = manifest_of(store.get("manifest")).successor or store.get("model_pk")
    return found


def floor(store: DeviceStore) -> int:
    """The highest counter that this device has confirmed."""
    found: int = store.get("floor") or manifest_of(store.get("manifest")).counter
    return found


def switch(directory: Path, store: DeviceStore, message: bytes, head: HeldHead, *, same_features: bool) -> None:
    """Use the model in the spare slot, for a start: what goes with the old one is kept beside it.

    same_features: its backbone is the old one's, so the samples go on with it.
    """
    manifest, slot = manifest_of(message), spare(store)
    old, known = manifest_of(store.get("manifest")), store.features
    marks = {f"features:{old.digest.hex()[:16]}": known}
    features = known if same_features else store.get(f"features:{manifest.digest.hex()[:16]}")
    facts = {
        **marks,
        "slot": slot,
        "manifest": message,
        "model_pk": signer(store),
        "floor": floor(store),
        "features": manifest.digest[:8] if features is None else features,
        "tries": TRIES,
        "last_round": 0,
    }
    chosen_at = 0 if head.version == 0 else -1
    with store.write() as db:
        _save(store, db)
        facts["head"] = add_head(db, head)
        db.executemany("INSERT OR REPLACE INTO meta VALUES(?,?)", facts.items())
        drop_update(db)
        put_choice(db, Kept(chosen_at, "model", fitted=False, digest=manifest.digest, start=head))
        drop_unused(db)
    put_right(directory, store)
    log.info("model switched counter=%d name=%s slot=%s", manifest.counter, manifest.name, slot)


def confirm(store: DeviceStore) -> None:
    """The new model has made a good inference: it stays, and no lower counter is taken from now on."""
    counter = manifest_of(store.get("manifest")).counter
    with store.write() as db:
        db.execute("DELETE FROM meta WHERE key='tries'")
        db.execute("INSERT OR REPLACE INTO meta VALUES('floor',?)", (max(counter, floor(store)),))
    log.info("model confirmed counter=%d", counter)


def fall_back(directory: Path, store: DeviceStore, why: str, code: int) -> None:
    """Use the other slot again, with all that went with it, and remember what was refused and why."""
    counter = manifest_of(store.get("manifest")).counter
    unconfirmed = store.get("tries") is not None
    with store.write() as db:
        names = ("slot", "manifest", "model_pk", "features", "head")
        row = store.row("SELECT name, manifest, model_pk, features, head FROM slot")
        facts = dict(zip(names, row, strict=True)) | {"last_round": 0}
        if unconfirmed:
            facts |= _refusal(counter, code, why)
        db.executemany("INSERT OR REPLACE INTO meta VALUES(?,?)", facts.items())
        db.execute(f"INSERT OR REPLACE INTO kept(only, {CHOICE}) SELECT 1, {CHOICE} FROM slot")  # noqa: S608 - ours
        drop_update(db)
        db.execute("DELETE FROM meta WHERE key='tries'")
        db.execute("DELETE FROM slot")
        drop_unused(db)
    put_right(directory, store)
    log.warning("model fallen back from counter=%d why=%r", counter, why)


def refuse(store: DeviceStore, counter: int, fault: RemoteError) -> None:
    """Remember that a model was not taken: it is not tried again, and the gateway is told."""
    store.put(**_refusal(counter, fault.code, fault.what))
    log.warning("model refused counter=%d code=%d why=%r", counter, fault.code, fault.what)


def refusal(store: DeviceStore) -> wire.Refusal | None:
    """The newer model that was not taken, as the gateway is told."""
    counter = store.get("refused")
    return wire.Refusal(counter, store.get("refused_code"), store.get("refused_why")) if counter else None


def boot(directory: Path, store: DeviceStore) -> Boot:
    """Choose the model of this start, before anything is loaded, and put its files right.

    A model that is not confirmed has one try less when this returns.
    """
    tries, other = store.get("tries"), store.row("SELECT name, manifest FROM slot")
    whole = is_whole(base_path(directory, store), store.get("manifest"))
    other_path = directory / statedir.MODEL / SLOTS[other[0]] if other else None
    chosen = verdict(tries, whole=whole, other_whole=bool(other_path and is_whole(other_path, other[1])))
    if chosen is Boot.FALL_BACK:
        why = "its file is damaged" if not whole else f"{TRIES} starts without a good inference"
        fall_back(directory, store, why, wire.Code.CONFLICT)
        return chosen
    if chosen is Boot.TRY:
        store.put(tries=tries - 1)
    elif chosen is Boot.FETCH:
        log.error("model damaged file=%s: it is fetched again", base_path(directory, store).name)
    put_right(directory, store)
    return chosen


def put_right(directory: Path, store: DeviceStore) -> bool:
    """Make model/current.tflite what was chosen; False when the slot's file and the patch do not give it."""
    if digest_of(derived.path_of(directory)) == store.kept().digest:
        return True
    data = current(directory, store)
    if data is None:
        return False
    derived.put(directory, data)
    return True


def current(directory: Path, store: DeviceStore) -> bytes | None:
    """The file that was chosen, from the slot's and the patch; None when they do not give it."""
    kept = store.kept()
    try:
        data = base_path(directory, store).read_bytes()
        data = data if kept.patch is None else derived.applied(data, kept.patch, kept.start.body)
    except (OSError, DataError):
        return None
    return data if hashlib.sha256(data).digest() == kept.digest else None


def adopt(directory: Path, store: DeviceStore) -> None:
    """Store the patch of a file that was chosen before patches were stored, and remove what a switch left then."""
    folder, kept = directory / statedir.MODEL, store.kept()
    path = base_path(directory, store)
    if kept.patch is None and current(directory, store) is None and is_whole(path, store.get("manifest")):
        base = path.read_bytes()
        for file in (CURRENT, *FORMER):
            if digest_of(folder / file) == kept.digest and (folder / file).stat().st_size == len(base):
                store.put_kept(replace(kept, patch=derived.difference(base, (folder / file).read_bytes())))
                break
    for file in FORMER:
        (folder / file).unlink(missing_ok=True)


def is_whole(path: Path, message: bytes) -> bool:
    """Is a slot's file the one that its manifest names?"""
    return digest_of(path) == manifest_of(message).digest


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file, empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            return files.sha256(file)
    except OSError:
        return b""


def _save(store: DeviceStore, db: object) -> None:
    """Copy what goes with the model in use into the table of the other slot, within a transaction."""
    db.execute(  # type: ignore[attr-defined]
        f"INSERT OR REPLACE INTO slot SELECT 1, ?, ?, ?, ?, ?, {CHOICE} FROM kept",  # noqa: S608 - ours
        (store.get("slot") or "a", *map(store.get, ("manifest", "model_pk")), store.features, store.get("head")),
    )


def _refusal(counter: int, code: int, why: str) -> dict[str, object]:
    return {"refused": counter, "refused_code": int(code), "refused_why": cut_text(why, WHY_BYTES)}
