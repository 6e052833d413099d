# SPDX-License-Identifier: Apache-2.0
"""What is missing or odd about a device: each check is one question, asked of the real thing."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from fl_tiny import config, statedir
from fl_tiny.device.find import DEFAULT_PORT
from fl_tiny.device.layout import CURRENT, DEVICE_KEY, PSK
from fl_tiny.device.link import MODEL_LIMIT, Link
from fl_tiny.device.runtimes import HINT, chosen, full_name
from fl_tiny.device.slots import base_path, digest_of
from fl_tiny.device.store import DeviceStore
from fl_tiny.doctor import MIB, Finding, Odd, State, machine, openssl_found, owned, settings_read, sqlite_found, tried
from fl_tiny.errors import ConfigError, DataError
from fl_tiny.files import read_bounded
from fl_tiny.net.udp import resolve
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.consent import MIN_CLASSES, MIN_SAMPLES

IDLE_BYTES, TRAINING_BYTES = 26 * MIB, 60 * MIB  # docs/facts.md; Python, numpy and a small head


def examine(directory: Path) -> list[Finding]:
    """All findings about DIR, enrolled or not; those that need an enrolled one are left out until it is."""
    try:
        settings = config.load(directory / statedir.SETTINGS, config.DeviceSettings)
    except ConfigError:  # the check of that name says so
        settings = config.DeviceSettings()
    found = [
        tried("runtime", lambda: _runtime(settings)),
        tried("openssl", openssl_found),
        tried("sqlite", sqlite_found),
        tried("settings", lambda: settings_read(directory, config.DeviceSettings)),
    ]
    enrolled = tried("enrolled", lambda: _enrolled(directory))
    if not directory.exists():
        return [*found, enrolled, *machine(directory, IDLE_BYTES + TRAINING_BYTES)]
    found += [owned(directory), enrolled]
    wanted = IDLE_BYTES + TRAINING_BYTES
    if enrolled.state is State.OK:
        store = DeviceStore.open(directory / statedir.DATABASE, reading=True)
        wanted += 4 * store.sample_bytes()  # int8 features, and the same as float32 once
        found += [
            tried("secrets", lambda: _secrets(directory)),
            tried("model", lambda: _model(directory, store)),
            tried("samples", lambda: _samples(store)),
            tried("gateway", lambda: asyncio.run(_gateway(directory, settings, store))),
        ]
        store.close()
    return [*found, *machine(directory, wanted)]


def _runtime(settings: config.DeviceSettings) -> str | Odd:
    name = chosen(settings.runtime)
    if name.startswith("numpy"):
        return Odd(f"{full_name(name)}: ten times slower than an interpreter, same values", f"if it is slow: {HINT}")
    return full_name(name)


def _enrolled(directory: Path) -> str:
    store = DeviceStore.open(directory / statedir.DATABASE, reading=True)
    text = f"{store.get('did').hex()}, {'running' if statedir.is_running(directory) else 'not running'}"
    store.close()
    return text


def _secrets(directory: Path) -> str:
    for name in (DEVICE_KEY, PSK):
        statedir.read_secret(directory, name)
    return "for their owner alone"


def _model(directory: Path, store: DeviceStore) -> str | Odd:
    manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
    base = base_path(directory, store)
    if hashlib.sha256(read_bounded(base, MODEL_LIMIT)).digest() != manifest.digest:
        raise DataError(f"{base} is not the fleet's {manifest.name}", "restore it, or enrol DIR anew")
    if digest_of(directory / statedir.MODEL / CURRENT) != store.kept().digest:
        return Odd(f"{CURRENT} is not what was chosen", "the next device run makes it again")
    return f"{manifest.name}, as the fleet signed it"


def _samples(store: DeviceStore) -> str | Odd:
    count, classes = store.sample_count()[0], len(store.counts())
    if count < MIN_SAMPLES or classes < MIN_CLASSES:
        return Odd(
            f"{count} samples of {classes} classes: rounds are declined, heads are taken", "fl-tiny samples add DIR …"
        )
    return f"{count} samples of {classes} classes"


async def _gateway(directory: Path, settings: config.DeviceSettings, store: DeviceStore) -> str:
    """A handshake, unless a daemon holds the session: a second one would take it away from it."""
    where = settings.gateway or store.get("gateway")
    host, port = config.address(where, DEFAULT_PORT)
    if statedir.is_running(directory):
        await resolve(host, port)
        return f"{where}, asked by the daemon that runs"
    link = await Link.open((host, port), store.get("did").hex(), statedir.read_secret(directory, PSK))
    await link.close()
    return f"{where} answers and knows this device"
