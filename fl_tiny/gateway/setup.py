# SPDX-License-Identifier: Apache-2.0
"""What an operator does to a gateway's directory: make it, pair devices and peers, look at them."""

from __future__ import annotations

import base64
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_tiny import config, statedir
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault
from fl_tiny.files import sync_directory, write_atomic
from fl_tiny.gateway import bundles
from fl_tiny.gateway.gather import first_made, make_version
from fl_tiny.gateway.keys import GATEWAY_KEY, key_of
from fl_tiny.gateway.manifests import MODEL_KEY, Wanted, fitting, read_manifest, settle, sign
from fl_tiny.gateway.models import BASE, rollout
from fl_tiny.gateway.notices import notices, outliers
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Device
from fl_tiny.gateway.trouble import troubles
from fl_tiny.learn.head import read_parameters, trained_part
from fl_tiny.protocol import pairing, signed, wire
from fl_tiny.protocol.aggregate import WHOLE
from fl_tiny.protocol.fields import is_shown
from fl_tiny.protocol.identity import Identity, Kind
from fl_tiny.protocol.manifest import ManifestFile

SHOWN = 6  # ids in a message


@dataclass(frozen=True, slots=True)
class Initialised:
    """What ``gateway init`` reports. model_key: SHA-256 of the model-signing public key, hexadecimal."""

    model: str
    layers: int
    model_key: str


def initialised(directory: Path) -> Initialised | None:
    """As what DIR was initialised; None when it was not."""
    if not (directory / statedir.DATABASE).exists():
        return None
    store = Store.open(directory / statedir.DATABASE, reading=True)
    try:
        manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
        return Initialised(manifest.name, manifest.layers, signed.digest(store.get("model_pk")).hex())
    finally:
        store.close()


def initialise(
    directory: Path, model_file: Path, labels_file: Path | None, wanted: Wanted, manifest_file: Path | None = None
) -> Initialised:
    """Make DIR a gateway for this model: keys, signed manifest, version 0 of the head. All or nothing.

    manifest_file: of ``fleet sign``, for this model; then no model-signing key comes to lie here.
    Raises: ConfigError when DIR is initialised already, or for a table that does not fit; ModelError, DataError.
    """
    if (directory / statedir.DATABASE).exists():
        raise ConfigError(f"{directory} is initialised already", hint="a gateway's directory is never overwritten")
    keys = {GATEWAY_KEY: os.urandom(signed.SEED_BYTES)}
    if manifest_file is None:
        made = settle(model_file, labels_file, wanted, settings=directory / statedir.SETTINGS)
        keys[MODEL_KEY] = os.urandom(signed.SEED_BYTES)
        file = wire.decode(ManifestFile, sign(keys[MODEL_KEY], made), limit=ManifestFile.LIMIT)
    else:
        file = read_manifest(manifest_file)
        made = fitting(model_file, file)
    if directory.exists():  # not before: what is named on the command line may be readable by root alone
        statedir.act_as_owner(directory)
    statedir.create(directory)
    for name, seed in keys.items():
        statedir.write_secret(directory, name, seed)
    write_atomic(directory / statedir.MODEL / BASE, made.data)
    parameters = trained_part(made.spec, read_parameters(made.spec))
    digest = signed.digest(signed.payload_of(file.signed))
    first = make_version(0, first_made(parameters), digest, keys[GATEWAY_KEY])
    partial = directory / f".{statedir.DATABASE}.new"
    partial.unlink(missing_ok=True)
    store = Store.create(partial)
    store.put(manifest=file.signed, gateway_pk=signed.public_key(keys[GATEWAY_KEY]), model_pk=file.pk)
    store.add_first(first)
    store.close()
    partial.rename(directory / statedir.DATABASE)
    sync_directory(directory)
    return Initialised(made.manifest.name, made.manifest.layers, signed.digest(file.pk).hex())


def new_codes(directory: Path, count: int, seconds: float) -> list[str]:
    """``count`` new pairing codes as text, each with this gateway's address as far as it is known."""
    store = Store.open(directory / statedir.DATABASE)
    made = [pairing.PairingCode(os.urandom(8), os.urandom(16), hint_address(directory, store)) for _ in range(count)]
    store.add_pairings([(code.token, code.secret) for code in made], seconds)
    return [pairing.to_text(code) for code in made]


def new_peer(directory: Path, name: str) -> tuple[str, str]:
    """(identity, key) of a new read-only peer; the key is 32 base64url characters, used as its bytes."""
    if not (0 < len(name.encode("utf-8", "replace")) <= 32 and is_shown(name) and " " not in name):
        raise ConfigError(f"{name!r} is no name for a peer", hint="1 to 32 bytes that can be seen, without spaces")
    key = base64.urlsafe_b64encode(os.urandom(24)).decode()
    Store.open(directory / statedir.DATABASE).add_peer(name, key.encode())
    return Identity(Kind.PEER, name.encode()).text, key


def revoke_peer(directory: Path, name: str) -> None:
    """Take a peer's key away; a running gateway ends its session within a second. Raises: DataError."""
    if not Store.open(directory / statedir.DATABASE).remove_peer(name):
        raise DataError(f"no peer is called {name!r}", hint=f"fl-tiny gateway peer list {directory}")


def write_cards(out: Path, codes: list[str]) -> None:
    """One settings file a card, ``OUT/001/fl-tiny.toml`` and so on, mode 0600. Raises: EnvironmentFault."""
    for number, code in enumerate(codes, 1):
        card = out / f"{number:03}"
        try:
            card.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise EnvironmentFault(f"cannot make {card}: {cause.strerror}") from cause
        write_atomic(card / statedir.SETTINGS, f'pairing_code = "{code}"\n'.encode(), 0o600)


def find_device(store: Store, which: str) -> Device:
    """The device that ``which`` names: an id, or what one device alone has as its name or as the beginning of its id.

    No name is an id (``protocol.identity.name_fault``), so an id in full says always which is meant.
    Raises: DataError when there is none, or more than one.
    """
    devices = store.devices()
    found = [d for d in devices if d.did.hex() == which]
    found = found or [d for d in devices if which and (d.did.hex().startswith(which) or d.name == which)]
    if not found:
        raise DataError(f"no device is called {which!r}", hint="fl-tiny gateway devices DIR lists them")
    if len(found) > 1:
        ids = ", ".join(d.did.hex() for d in found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        raise DataError(f"{len(found)} devices may be meant by {which!r}: {ids}", hint="say the id in full")
    return found[0]


def hint_address(directory: Path, store: Store) -> str:
    """``host:port`` under which a device of this LAN may find the gateway, empty when that is not known."""
    settings = config.load(directory / statedir.SETTINGS, config.GatewaySettings)
    if settings.advertise:
        return settings.advertise
    bound = store.get("bound")
    if not bound:
        return ""
    host, port = config.address(bound, 5684)
    if host in ("::", "0.0.0.0"):  # noqa: S104 - a comparison, not a bind
        host = _lan_address()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def summary(store: Store, running: bool) -> dict[str, Any]:
    """What ``gateway status`` reports: uri, round, state, devices, head, key, what is on its way, trouble."""
    opened, head, key = store.opened(), store.head(), key_of(store)
    entries = bool(opened and next(store.accepted(opened.rid), None))
    state = ("collecting" if entries else "open") if opened else "idle"
    return {
        "uri": store.get("uri") if running else None,
        "round": opened.number if opened else head.number,
        "state": state if running else "stopped",
        "devices": sum(d.state == "active" for d in store.devices()),
        "head": head.digest.hex(),
        "gateway_key": {"sha256": signed.digest(key.pk).hex(), "serial": key.serial},
        "rollout": rollout(store),
        "bundles": bundles.listed(store),
        "trouble": [str(each) for each in troubles(store)],
        "notices": [notice.text for notice in notices(store)],
    }


LAST_COUNTED = """SELECT did, weight, factor FROM ledger JOIN device USING(did)
  WHERE consumed_by=last_round AND factor IS NOT NULL"""


def device_rows(store: Store) -> list[dict[str, Any]]:
    """What ``gateway devices`` reports; last_seen_s counts within this boot of the machine, else null;
    weight: what its last update weighed, in samples; counted: which share of its change counted; outlier is null among
    fewer than four devices, or three rounds; model is the counter held, trouble what keeps the device out, lacks what
    its training waits for."""
    now, boot = statedir.boot_clock_s(), statedir.boot_id()
    scores = outliers(store)
    counted = {did: row for did, *row in store.rows(LAST_COUNTED)}
    trouble = dict(store.rows("SELECT did, why FROM boot WHERE why IS NOT NULL"))
    models: dict[bytes, int] = {}
    current = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest"))).counter
    for did, model, refused, code, why in store.rows("SELECT did, model, refused, code, why FROM holds"):
        models[did] = model
        if refused is not None and refused > model:
            trouble.setdefault(did, f"refused model {refused}: {why} (code {code})")
    return [
        {
            "id": d.did.hex(),
            "name": d.name,
            "state": d.state,
            "last_round": d.last_round,
            "samples": d.samples,
            "weight": counted[d.did][0] if d.did in counted else None,
            "counted": round(counted[d.did][1] / WHOLE, 3) if d.did in counted else None,
            "last_seen_s": round(now - d.seen, 1) if d.seen is not None and d.boot == boot else None,
            "model": models.get(d.did, current),
            "trouble": trouble.get(d.did),
            "lacks": wire.Lack(d.lacks or 0).names(),
            "outlier": None if (score := scores.get(d.did)) is None else round(score, 2),
        }
        for d in store.devices()
    ]


def _lan_address() -> str:
    """The address this machine would use towards its LAN; nothing is sent (a UDP connect only asks the routes)."""
    for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # RFC 5737, RFC 3849
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((anywhere, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"
