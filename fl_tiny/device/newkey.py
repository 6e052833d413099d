# SPDX-License-Identifier: Apache-2.0
"""A new key and PSK for an enrolled device, in steps each of which may be cut: the old or the new ones work.

1. DIR/secret/device.key.next is written before its public half is shown. 2. The PSK that the gateway answers with is
written beside it. 3. The first ``register`` with it makes both the gateway's. 4. A mark in the database, then the
files take their places. A start with files of step 2 finds out which PSK works.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fl_tiny import config, statedir
from fl_tiny.device.layout import DEVICE_KEY, PSK
from fl_tiny.device.link import Link
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import ConfigError, RemoteError
from fl_tiny.files import sync_directory
from fl_tiny.protocol import rekey, signed
from fl_tiny.protocol.identity import Identity, Kind
from fl_tiny.protocol.wire import Code

log = logging.getLogger(__name__)

NEW_KEY, NEW_PSK = "device.key.next", "psk.next"
Address = tuple[str, int]


async def make_new_key(directory: Path, store: DeviceStore, settings: config.DeviceSettings, address: Address) -> int:
    """Give DIR a new key and PSK; the generation. The device's id stays. Raises: ConfigError, RemoteError."""
    if store.journal() is not None:
        raise ConfigError("an update signed by the old key is owed", hint="fl-tiny device run DIR delivers it")
    secret = directory / statedir.SECRET
    did: bytes = store.get("did")
    async with connected(directory, store, settings, address) as link:
        await link.register(did)
        gen = (store.get("gen") or 0) + 1
        if not (secret / NEW_KEY).exists():
            statedir.write_secret(directory, NEW_KEY, os.urandom(signed.SEED_BYTES))
        new = statedir.read_secret(directory, NEW_KEY)
        told = await link.rekey(rekey.asked(did, gen, statedir.read_secret(directory, DEVICE_KEY), new))
        if told.gen != gen:
            raise RemoteError(f"a PSK of generation {told.gen}, {gen} was asked for", code=Code.CONFLICT)
        statedir.write_secret(directory, NEW_PSK, told.psk)
    async with connected(directory, store, settings, address):
        log.info("new key device=%s gen=%d", did.hex()[:8], store.get("gen") or 0)
    return store.get("gen") or 0


@contextlib.asynccontextmanager
async def connected(
    directory: Path, store: DeviceStore, settings: config.DeviceSettings, address: Address
) -> AsyncIterator[Link]:
    """A session by whichever PSK the gateway knows; what of a new key was left half-way is finished or dropped.

    Raises: as ``Link.open``.
    """
    link = await open_link(directory, store, settings, address)
    try:
        yield link
    finally:
        await link.close()


async def open_link(directory: Path, store: DeviceStore, settings: config.DeviceSettings, address: Address) -> Link:
    """As ``connected``; the caller closes it."""
    did: bytes = store.get("did")

    async def session(identity: str, psk: bytes) -> Link:
        return await Link.open(address, identity, psk, lan_timing=settings.lan_timing)

    take_places(directory, store)
    if not (directory / statedir.SECRET / NEW_PSK).exists():
        return await session(Identity(Kind.DEVICE, did).text, statedir.read_secret(directory, PSK))
    psk = statedir.read_secret(directory, NEW_PSK)
    with contextlib.suppress(RemoteError):  # the gateway has made it the only one, or knows nothing of it
        link = await session(Identity(Kind.NEXT, did).text, psk)
        try:
            await link.register(did)
        except BaseException:
            await link.close()
            raise
        await link.close()
        _settle(directory, store)
        return await session(Identity(Kind.DEVICE, did).text, psk)
    with contextlib.suppress(RemoteError):
        link = await session(Identity(Kind.DEVICE, did).text, psk)
        _settle(directory, store)
        return link
    link = await session(Identity(Kind.DEVICE, did).text, statedir.read_secret(directory, PSK))
    (directory / statedir.SECRET / NEW_PSK).unlink()  # the key goes on waiting for another
    return link


def take_places(directory: Path, store: DeviceStore) -> None:
    """Let a new key and PSK that the gateway has made the only ones take the places of the old; safe to repeat."""
    if store.get("new_key") is None:
        return
    secret = directory / statedir.SECRET
    for new, old in ((NEW_KEY, DEVICE_KEY), (NEW_PSK, PSK)):
        if (secret / new).exists():
            (secret / new).replace(secret / old)
    sync_directory(secret)
    with store.write() as db:
        db.execute("DELETE FROM meta WHERE key='new_key'")


def _settle(directory: Path, store: DeviceStore) -> None:
    store.put(new_key=1, gen=(store.get("gen") or 0) + 1)
    take_places(directory, store)
