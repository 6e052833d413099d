# SPDX-License-Identifier: Apache-2.0
"""What is missing or odd about a gateway: each check is one question, asked of the real thing."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

from fl_tiny import config, statedir
from fl_tiny.doctor import MIB, Finding, Odd, State, machine, openssl_found, owned, settings_read, sqlite_found, tried
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault
from fl_tiny.gateway.keys import seed_of
from fl_tiny.gateway.manifests import MODEL_KEY
from fl_tiny.gateway.models import model_data
from fl_tiny.gateway.notices import notices
from fl_tiny.gateway.setup import hint_address, summary
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.strategies import strategy_named
from fl_tiny.gateway.trouble import troubles
from fl_tiny.net.udp import bound_socket
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.strategy import Options

IDLE_BYTES, SESSION_BYTES = 60 * MIB, 65_536  # docs/facts.md


def examine(directory: Path) -> list[Finding]:
    """All findings about DIR, a gateway or not; those that need one are left out until it is."""
    try:
        settings = config.load(directory / statedir.SETTINGS, config.GatewaySettings)
    except ConfigError:  # the check of that name says so
        settings = config.GatewaySettings()
    found = [
        tried("openssl", openssl_found),
        tried("sqlite", sqlite_found),
        tried("settings", lambda: settings_read(directory, config.GatewaySettings)),
        tried("page", lambda: _page(settings)),
        tried("strategy", lambda: _strategy(settings)),
        tried("port", lambda: _port(directory, settings)),
    ]
    made = tried("fleet", lambda: _fleet(directory))
    if not directory.exists():
        return [*found, made, *machine(directory, IDLE_BYTES)]
    found += [owned(directory), made]
    wanted = IDLE_BYTES
    if made.state is State.OK:
        with contextlib.closing(Store.open(directory / statedir.DATABASE, reading=True)) as store:
            wanted += SESSION_BYTES * len(store.devices())
            found += [
                tried("secrets", lambda: _secrets(directory, store)),
                tried("model", lambda: _model(directory, store)),
                tried("rollout", lambda: _rollout(store)),
                tried("address", lambda: _address(directory, store)),
                tried("learning", lambda: _learning(store)),
            ]
    return [*found, *machine(directory, wanted)]


def _page(settings: config.GatewaySettings) -> str:
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if settings.web and missing:
        raise EnvironmentFault(f"web = {settings.web!r} needs {', '.join(missing)}", "pip install 'fl-tiny[gateway]'")
    return f"at {settings.web}" if settings.web else "off"


def _strategy(settings: config.GatewaySettings) -> str:
    strategy_named(settings.strategy, Options(settings.server_rate, settings.server_momentum, settings.proximal))
    return settings.strategy


def _port(directory: Path, settings: config.GatewaySettings) -> str:
    if directory.exists() and statedir.is_running(directory):
        return "held by the gateway that runs"
    host, port = config.address(settings.bind, 5684)
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    bound_socket(text).close()
    return f"{text} is free"


def _fleet(directory: Path) -> str:
    with contextlib.closing(Store.open(directory / statedir.DATABASE, reading=True)) as store:
        found = summary(store, statedir.is_running(directory))
    return f"{found['devices']} devices, round {found['round']}, {found['state']}"


def _secrets(directory: Path, store: Store) -> str:
    seed_of(directory, store)
    if not (directory / statedir.SECRET / MODEL_KEY).exists():
        return "for their owner alone; the model key is elsewhere"
    statedir.read_secret(directory, MODEL_KEY)
    return "for their owner alone"


def _model(directory: Path, store: Store) -> str:
    manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
    if signed.digest(model_data(store, directory)) != manifest.digest:
        where = directory / statedir.MODEL
        raise DataError(f"the model in {where} is not the fleet's {manifest.name}", "restore it from a backup")
    return f"{manifest.name}, as it was signed"


def _learning(store: Store) -> str | Odd:
    found = notices(store)
    return Odd("; ".join(notice.text for notice in found), "look at these boards") if found else "nobody stands out"


def _rollout(store: Store) -> str:
    if found := troubles(store):
        raise DataError("; ".join(each.what for each in found), hint="; ".join(each.todo for each in found))
    return "no device is ahead of this gateway"


def _address(directory: Path, store: Store) -> str | Odd:
    where = hint_address(directory, store)
    if not where:
        return Odd("pairing codes carry no address yet", "run the gateway once, or set advertise")
    return f"{where} stands in pairing codes"
