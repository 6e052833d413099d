# SPDX-License-Identifier: Apache-2.0
"""Make DIR an enrolled device: show a key under a pairing code, come back with the PSK, fetch model and head."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from fl_tiny import config, statedir
from fl_tiny.device import derived
from fl_tiny.device.find import DEFAULT_PORT, elsewhere
from fl_tiny.device.layout import BASE, DEVICE_KEY, PSK
from fl_tiny.device.link import Link
from fl_tiny.device.store import DeviceStore, HeldHead, Kept
from fl_tiny.errors import ConfigError, EnvironmentFault, RemoteError
from fl_tiny.files import write_atomic
from fl_tiny.protocol import pairing, signed, wire
from fl_tiny.protocol.identity import Identity, Kind, name_fault

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EnrolledAs:
    """What ``device enroll`` reports."""

    id: str
    gateway: str
    model: str


def enrolled(directory: Path) -> EnrolledAs | None:
    """As what DIR is enrolled; None when it is not, or not to the end."""
    path = directory / statedir.DATABASE
    if not path.exists():
        return None
    store = DeviceStore.create(path)
    try:
        if store.get("enrolled") is None:
            return None
        manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
        return EnrolledAs(store.get("did").hex(), store.get("gateway"), manifest.name)
    finally:
        store.close()


async def enrol(
    directory: Path, code_text: str, gateway: str | None, name: str | None, model_key: str | None = None
) -> EnrolledAs:
    """Enrol DIR. Every step may be cut: the same code and DIR go on where they were.

    model_key: SHA-256 of the key that signs models, hexadecimal; None: the setting, else the gateway's word.
    Raises: ConfigError for a name that misleads, when DIR is enrolled already or no gateway is known; RemoteError when
    the code is wrong, used or expired, nobody answers, or the model key is another; EnvironmentFault.
    """
    settings = config.load(directory / statedir.SETTINGS, config.DeviceSettings)
    if name is not None and (fault := name_fault(name)):
        raise ConfigError(f"{name!r} is no name for a device: {fault}", hint="--name kitchen, for example")
    if enrolled(directory):
        raise ConfigError(f"{directory} is enrolled already", hint="a device's identity is never overwritten")
    code = pairing.from_text(code_text)
    link, where = await _reached(code, gateway or settings.gateway, settings)
    address = config.address(where, DEFAULT_PORT)
    try:
        statedir.create(directory)
        seed = _device_key(directory)
        told = await link.enrol(seed, name)
    except RemoteError as fault:
        if fault.code == wire.Code.PAIRING and not fault.hint:
            raise RemoteError(
                fault.what, "a code is for one board: fl-tiny gateway pair --count N", fault.code
            ) from fault
        raise
    finally:
        await link.close()
    if told.did != signed.device_id(signed.public_key(seed)):
        raise RemoteError("the gateway gave an id that is not this key's", code=wire.Code.SIGNATURE)
    pinned = model_key or settings.model_key
    found = signed.digest(told.model_pk).hex()
    if pinned and pinned.lower() != found:
        why = f"the gateway's model key is {found}, not {pinned.lower()}"
        raise RemoteError(why, "is this the fleet you mean?", wire.Code.SIGNATURE)
    statedir.write_secret(directory, PSK, told.psk)
    link = await Link.open(address, Identity(Kind.DEVICE, told.did).text, told.psk, lan_timing=settings.lan_timing)
    try:
        await link.register(told.did)
        return await _fetch(directory, link, told, where, pinned=bool(pinned))
    finally:
        await link.close()


async def _reached(code: pairing.PairingCode, given: str | None, settings: config.DeviceSettings) -> tuple[Link, str]:
    """A session for one enrolment, and where: at the address given, else the code's, else at one that is proposed."""

    async def opened(address: tuple[str, int]) -> Link:
        return await Link.open(address, code.identity, code.secret, lan_timing=settings.lan_timing)

    where = given or code.address
    failed: EnvironmentFault | RemoteError | None = None
    if where:
        try:
            return await opened(config.address(where, DEFAULT_PORT)), where
        except EnvironmentFault as fault:
            failed = fault
        except RemoteError as fault:
            why = "is the code wrong, used or expired?" if fault.hint else "is the code used or expired?"
            failed = RemoteError(fault.what, f"{fault.hint}; {why}" if fault.hint else why, fault.code)
    found = None if given else await elsewhere(settings.discovery, None, where or None, opened)
    if found is not None:
        return found
    if failed is not None:
        raise failed
    why = "the code carries no address, and it opens none that the network proposes"
    raise ConfigError(f"no gateway is known: {why}", hint="add --gateway HOST:PORT")


async def _fetch(directory: Path, link: Link, told: wire.Enrolled, where: str, *, pinned: bool) -> EnrolledAs:
    _, model = await link.model(told.model_pk)
    digest = hashlib.sha256(signed.payload_of(model.signed)).digest()
    head = await link.head(digest, model.manifest.body_size, told.gateway_pk)
    write_atomic(directory / statedir.MODEL / BASE, model.data)
    derived.settle_place(directory, None)
    derived.put(directory, model.data)
    store = DeviceStore.create(directory / statedir.DATABASE)
    store.put_head(head)
    # The model's own head is in the file as it is; a newer one is chosen by the first job of `device run`.
    start = HeldHead(head.version, head.signed, head.body)
    chosen_at = 0 if head.version == 0 else -1
    store.put_kept(Kept(chosen_at, "model", fitted=False, digest=model.manifest.digest, start=start))
    store.put(
        did=told.did,
        gateway=where,
        gateway_pk=told.gateway_pk,
        gateway_serial=told.serial or 0,
        model_pk=told.model_pk,
        manifest=model.signed,
        model_pinned=int(pinned),
        enrolled=1,
    )
    store.close()
    log.info("enrolled device=%s gateway=%s model=%s", told.did.hex()[:8], where, model.manifest.name)
    return EnrolledAs(told.did.hex(), where, model.manifest.name)


def _device_key(directory: Path) -> bytes:
    """The device's Ed25519 seed, made and on the disk before it is shown: a retry must show the same key."""
    if not (directory / statedir.SECRET / DEVICE_KEY).exists():
        statedir.write_secret(directory, DEVICE_KEY, os.urandom(signed.SEED_BYTES))
    return statedir.read_secret(directory, DEVICE_KEY)
