# SPDX-License-Identifier: Apache-2.0
"""What an operator does to a gateway's directory: make it, pair devices and peers, revoke, export a head."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_tiny import config, statedir
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault, ModelError
from fl_tiny.files import read_bounded, sync_directory, write_atomic
from fl_tiny.gateway.gather import first_made, make_version
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Device, Version
from fl_tiny.labels import labels_of, read_labels
from fl_tiny.learn.head import HeadSpec, default_layers, head_spec, read_parameters, trained_part, whole
from fl_tiny.learn.loss import Task
from fl_tiny.learn.requant import patch, requantise
from fl_tiny.learn.tflite import Model, read_model
from fl_tiny.protocol import cbor, pairing, signed, wire
from fl_tiny.protocol.fields import to_map
from fl_tiny.protocol.manifest import manifest_of, spec_of
from fl_tiny.protocol.prepare import settled
from fl_tiny.protocol.preprocess import LIMIT, Preprocess
from fl_tiny.protocol.update import HeadBody, decode_head

MODEL_LIMIT = 64 << 20  # bytes of a .tflite that a fleet carries
BASE = "base.tflite"
GATEWAY_KEY, MODEL_KEY = "gateway.key", "model.key"


@dataclass(frozen=True, slots=True)
class Initialised:
    """What ``gateway init`` reports. model_key: SHA-256 of the model-signing public key, hexadecimal."""

    model: str
    layers: int
    model_key: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a model a fleet is to train, and on what. layers, task: None takes what suits the model.

    table_file: the preprocessing; None: [preprocess] of DIR/fl-tiny.toml, if it is there.
    """

    layers: int | None = None
    task: Task | None = None
    biases_only: bool = False
    table_file: Path | None = None


def initialised(directory: Path) -> Initialised | None:
    """As what DIR was initialised; None when it was not."""
    if not (directory / statedir.DATABASE).exists():
        return None
    store = Store.open(directory / statedir.DATABASE)
    try:
        manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
        return Initialised(manifest.name, manifest.layers, hashlib.sha256(store.get("model_pk")).hexdigest())
    finally:
        store.close()


def initialise(directory: Path, model_file: Path, labels_file: Path | None, wanted: Wanted) -> Initialised:
    """Make DIR a gateway for this model: keys, signed manifest, version 0 of the head. All or nothing.

    Raises: ConfigError when DIR is initialised already, or for a table that does not fit; ModelError, DataError.
    """
    if (directory / statedir.DATABASE).exists():
        raise ConfigError(f"{directory} is initialised already", hint="a gateway's directory is never overwritten")
    data = read_bounded(model_file, MODEL_LIMIT)
    model = read_model(data)
    layers = wanted.layers if wanted.layers is not None else default_layers(model)
    spec = head_spec(model, layers, task=wanted.task, biases_only=wanted.biases_only)
    labels = _labels(labels_file, data, spec)
    table = _read_table(directory, wanted.table_file, model)
    if spec.parameters > wire.MAX_CODES:
        raise ModelError(
            f"the last {len(spec.layers)} layers have {spec.parameters} parameters, an update carries at most"
            f" {wire.MAX_CODES}",
            hint="train fewer layers: --layers",
        )
    manifest = manifest_of(_name(model_file), data, spec, labels, table)
    if directory.exists():  # not before: what is named on the command line may be readable by root alone
        statedir.act_as_owner(directory)
    statedir.create(directory)
    seeds = {name: os.urandom(signed.SEED_BYTES) for name in (GATEWAY_KEY, MODEL_KEY)}
    for name, seed in seeds.items():
        statedir.write_secret(directory, name, seed)
    write_atomic(directory / statedir.MODEL / BASE, data)
    parameters = trained_part(spec, read_parameters(spec))
    encoded = wire.encode(manifest)
    model_pk = signed.public_key(seeds[MODEL_KEY])
    digest = hashlib.sha256(encoded).digest()
    first = make_version(0, first_made(parameters), 0, digest, seeds[GATEWAY_KEY])
    partial = directory / f".{statedir.DATABASE}.new"
    partial.unlink(missing_ok=True)
    store = Store.create(partial)
    store.put(
        manifest=signed.sign(encoded, seeds[MODEL_KEY]),
        gateway_pk=signed.public_key(seeds[GATEWAY_KEY]),
        model_pk=model_pk,
    )
    store.add_first(first)
    store.close()
    partial.rename(directory / statedir.DATABASE)
    sync_directory(directory)
    return Initialised(manifest.name, len(spec.layers), hashlib.sha256(model_pk).hexdigest())


def new_codes(directory: Path, count: int, seconds: float) -> list[str]:
    """``count`` new pairing codes as text, each with this gateway's address as far as it is known."""
    store = Store.open(directory / statedir.DATABASE)
    made = [pairing.PairingCode(os.urandom(8), os.urandom(16), hint_address(directory, store)) for _ in range(count)]
    store.add_pairings([(code.token, code.secret) for code in made], seconds)
    return [pairing.to_text(code) for code in made]


def new_peer(directory: Path, name: str) -> tuple[str, str]:
    """(identity, key) of a new read-only peer; the key is 32 base64url characters, used as its bytes."""
    if not (0 < len(name.encode()) <= 32 and name.isprintable() and " " not in name):
        raise ConfigError(f"{name!r} is no name for a peer", hint="1 to 32 printable characters without spaces")
    key = base64.urlsafe_b64encode(os.urandom(24)).decode()
    Store.open(directory / statedir.DATABASE).add_peer(name, key.encode())
    return f"peer:{name}", key


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
    """The device that ``which`` names: an id, a unique prefix of one, or a name. Raises: DataError."""
    devices = store.devices()
    found = [d for d in devices if which and d.did.hex().startswith(which.lower())]
    found = [d for d in devices if d.name == which] or found
    if len(found) != 1:
        why = "no device is" if not found else f"{len(found)} devices are"
        raise DataError(f"{why} called {which!r}", hint="fl-tiny gateway devices DIR lists them")
    return found[0]


def export(directory: Path, out: Path) -> Version:
    """Write the model with the head published last to ``out``, all or nothing, and return that version."""
    store = Store.open(directory / statedir.DATABASE)
    version = store.head()
    data = read_bounded(directory / statedir.MODEL / BASE, MODEL_LIMIT)
    manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
    if version.number > 0:
        head = wire.decode(wire.Head, signed.payload_of(version.signed))
        spec = spec_of(read_model(data), manifest)
        parameters = whole(spec, decode_head(HeadBody(version.body, head.scales), manifest.shapes))
        spans = list(zip(head.ranges[0::2], head.ranges[1::2], strict=True)) if head.ranges else None
        data = patch(data, spec, requantise(spec, parameters, spans))
    write_atomic(out, data)
    return version


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
    """What ``gateway status`` reports: uri, round, state, devices, head."""
    opened, head = store.opened(), store.head()
    entries = bool(opened and next(store.accepted(opened.rid), None))
    state = ("collecting" if entries else "open") if opened else "idle"
    return {
        "uri": store.get("uri") if running else None,
        "round": opened.number if opened else head.number,
        "state": state if running else "stopped",
        "devices": sum(d.state == "active" for d in store.devices()),
        "head": head.digest.hex(),
    }


def device_rows(store: Store) -> list[dict[str, Any]]:
    """What ``gateway devices`` reports; last_seen_s counts within this boot of the machine, else null;
    outlier is null without an exact start."""
    now, boot = statedir.boot_clock_s(), statedir.boot_id()
    outliers = store.outliers()
    return [
        {
            "id": d.did.hex(),
            "name": d.name,
            "state": d.state,
            "last_round": d.last_round,
            "samples": d.samples,
            "last_seen_s": round(now - d.seen, 1) if d.seen is not None and d.boot == boot else None,
            "outlier": None if (score := outliers.get(d.did)) is None else round(score, 2),
        }
        for d in store.devices()
    ]


def _name(file: Path) -> str:
    """A model's name as a manifest can carry it."""
    return "".join(c for c in file.stem if c.isprintable())[:32].encode()[:32].decode("utf-8", "ignore") or "model"


def _read_table(directory: Path, file: Path | None, model: Model) -> Preprocess | None:
    """The fleet's preprocessing with nothing left open, so that every device does the same."""
    place = directory / statedir.SETTINGS if file is None else file
    table = config.load_preprocess(file) if file else config.load(place, config.GatewaySettings).preprocess
    if table is None:
        return None
    table, faults = settled(table, model)
    size = len(cbor.encode(to_map(table)))
    if size > LIMIT:
        faults.append(f"it takes {size} B, at most {LIMIT} fit the manifest")
    if faults:
        raise ConfigError(f"{place}: preprocess: " + "; ".join(faults), hint="docs/config.md lists the keys")
    return table


def _labels(file: Path | None, data: bytes, spec: HeadSpec) -> tuple[str, ...] | None:
    """The outputs' names: from the operator's file, else from the model's own metadata."""
    outputs = spec.classes if spec.task is Task.CLASSES else spec.outputs
    labels = read_labels(file, outputs) if file else labels_of(data, outputs)
    size = sum(len(label.encode()) for label in labels or ())
    if (
        size > wire.LABELS_LIMIT
        or len(labels or ()) > wire.MAX_LABELS
        or any(len(x.encode()) > 48 for x in labels or ())
    ):
        raise DataError(
            f"{len(labels or ())} labels of {size} B; at most {wire.MAX_LABELS} of 48 B, {wire.LABELS_LIMIT} B in all"
        )
    return labels


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
