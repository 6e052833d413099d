# SPDX-License-Identifier: Apache-2.0
"""DIR/fl-tiny.toml into checked frozen dataclasses; all faults reported at once, an unknown key with the nearest."""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fl_tiny.board import RULES as BOARD_RULES
from fl_tiny.board import SECRET_KEYS, Board, Network, Rule, Source, Ssh, faults_between, is_ip
from fl_tiny.errors import ConfigError, MalformedMessage, RemoteError
from fl_tiny.protocol.consent import MIN_CLASS, MIN_SAMPLES, Floors
from fl_tiny.protocol.fields import fields_of
from fl_tiny.protocol.preprocess import KINDS, Preprocess

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

S = TypeVar("S")
SIZE_LIMIT = 65_536  # bytes of a settings file
RUNTIMES = ("tflite", "litert", "numpy", "numpy:litert")  # device/runtimes.py says what each is


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What DIR/fl-tiny.toml of a gateway may say; docs/config.md explains each key."""

    bind: str = "[::]:5684"
    web: str | None = None
    clients: int | None = None
    quorum: float = 0.6
    over_selection: float = 1.3
    min_updates: int | None = None
    deadline: float = 600.0
    interval: float = 3600.0
    epochs: int = 4
    batch: int = 16
    rate: float = 0.1
    find_rate: bool = False
    smoothing: float = 0.0
    balanced: bool = False
    patience: int | None = None
    adam: bool = False
    strategy: str = "fedavg"
    server_rate: float | None = None
    server_momentum: float | None = None
    proximal: float | None = None
    encoding: str = "auto"
    kept: float = 0.05
    max_samples: int = 2000
    start: str = "model"
    min_samples: int = 10
    code_minutes: float = 10.0
    advertise: str | None = None
    announce: bool = True
    handshakes_per_s: int = 50
    constrained_peers: bool = False
    preprocess: Preprocess | None = None


@dataclass(frozen=True, slots=True)
class Privacy:
    """[privacy]: what may leave a board; no gateway changes it (protocol/consent.py)."""

    least: str = "clear"
    sums: str = "clear"
    min_samples: int = MIN_SAMPLES
    min_class: int = MIN_CLASS
    metrics: bool = True

    @property
    def floors(self) -> Floors:
        """As the answer to an offer needs them."""
        return Floors(self.least != "nothing", self.sums != "never", self.metrics, self.min_samples, self.min_class)


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What DIR/fl-tiny.toml of a device may say; docs/config.md explains each key."""

    gateway: str | None = None
    discovery: str = "any"
    pairing_code: str | None = None
    model_key: str | None = None
    lan_timing: bool = False
    max_samples: int = 5000
    max_sample_bytes: int = 33_554_432
    personal_epochs: int = 30
    runtime: str | None = None
    model_dir: str | None = None
    max_temperature: float = 85.0
    min_battery: float = 30.0
    max_memory_pressure: float = 25.0
    max_load: float | None = None
    board: Board | None = None
    network: Network | None = None
    ssh: Ssh | None = None
    source: Source | None = None
    privacy: Privacy | None = None


ADDRESSES = ("gateway", "bind", "web", "advertise")  # settings that are HOST:PORT
RULES: dict[str, Rule] = {
    **BOARD_RULES,
    "clients": ("at least 1", lambda v: v >= 1),
    "quorum": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "over_selection": ("from 1 to 10", lambda v: 1 <= v <= 10),
    "min_updates": ("1 to 65535", lambda v: 1 <= v <= 65_535),
    "deadline": ("1 to 86400 seconds", lambda v: 1 <= v <= 86_400),
    "interval": ("0 to 86400 seconds", lambda v: 0 <= v <= 86_400),
    "epochs": ("1 to 100", lambda v: 1 <= v <= 100),
    "batch": ("1 to 4096", lambda v: 1 <= v <= 4096),
    "rate": ("above 0 and at most 10", lambda v: 0 < v <= 10),
    "smoothing": ("0 to 0.9", lambda v: 0 <= v <= 0.9),
    "patience": ("1 to 100", lambda v: 1 <= v <= 100),
    "server_rate": ("above 0 and at most 100", lambda v: 0 < v <= 100),
    "server_momentum": ("0 up to, but not, 1", lambda v: 0 <= v < 1),
    "proximal": ("0 to 1000", lambda v: 0 <= v <= 1000),
    "max_sample_bytes": ("1024 to 1073741824", lambda v: 1024 <= v <= 2**30),
    "max_samples": ("1 to 65535", lambda v: 1 <= v <= 65_535),
    "encoding": ("auto, int8, int4 or topk", lambda v: v in ("auto", "int8", "int4", "topk")),
    "kept": ("above 0 and at most 0.25", lambda v: 0 < v <= 0.25),
    "start": ("exact or model", lambda v: v in ("exact", "model")),
    "min_samples": ("1 to 65535", lambda v: 1 <= v <= 65_535),
    "privacy.least": ("clear or nothing", lambda v: v in ("clear", "nothing")),
    "privacy.sums": ("clear or never", lambda v: v in ("clear", "never")),
    "privacy.min_samples": (f"{MIN_SAMPLES} to 65535", lambda v: MIN_SAMPLES <= v <= 65_535),
    "privacy.min_class": (f"{MIN_CLASS} to 65535", lambda v: MIN_CLASS <= v <= 65_535),
    "discovery": ("any, off, or an IP address of this board", lambda v: v in ("any", "off") or is_ip(v)),
    "code_minutes": ("above 0 and at most 43200", lambda v: 0 < v <= 43_200),
    "handshakes_per_s": ("1 to 100000", lambda v: 1 <= v <= 100_000),
    "model_key": ("64 hexadecimal digits", lambda v: len(v) == 64 and not set(v.lower()) - set("0123456789abcdef")),
    "personal_epochs": ("1 to 1000", lambda v: 1 <= v <= 1000),
    "max_temperature": ("0 to 200 degrees C", lambda v: 0 <= v <= 200),
    "min_battery": ("0 to 100 percent", lambda v: 0 <= v <= 100),
    "max_memory_pressure": ("0 to 100 percent", lambda v: 0 <= v <= 100),
    "max_load": ("above 0 and at most 1000", lambda v: 0 < v <= 1000),
    "model_dir": ("an absolute path", lambda v: v.startswith("/")),
    "runtime": (f"one of {', '.join(RUNTIMES)}", lambda v: v in RUNTIMES),
}


def load(path: Path, cls: type[S]) -> S:
    """The settings of ``path``, defaults where it does not exist. Raises: ConfigError that lists every fault."""
    if not path.exists():
        return cls()
    return check(read_table(path), cls, str(path))


def load_preprocess(path: Path) -> Preprocess:
    """The preprocessing table in ``path``, below [preprocess] or the whole file. Raises: ConfigError, all faults."""
    table = read_table(path)
    made, faults = preprocess_of(table.get("preprocess", table))
    if made is None or faults:
        raise ConfigError(f"{path}: " + "; ".join(faults), hint="docs/config.md lists the keys")
    return made


def preprocess_of(table: Any) -> tuple[Preprocess | None, list[str]]:
    """A table of settings as preprocessing, and its faults, each with its key."""
    kind = table.get("kind") if isinstance(table, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        return None, [f"preprocess.kind is none of {', '.join(KINDS)}"]
    rules = {field.name: field for field in fields_of(cast(Hashable, KINDS[kind]))}
    hints = get_type_hints(KINDS[kind])
    faults: list[str] = []
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in rules:
            faults.append(_unknown(f"preprocess.{key}", [f"preprocess.{name}" for name in rules]))
            continue
        try:
            values[key] = rules[key].key.read(_as_floats(value, hints[key]), f"preprocess.{key}")
        except MalformedMessage as fault:
            faults.append(fault.what)
    return (None if faults else KINDS[kind](**values)), faults


def check(table: dict[str, Any], cls: type[S], where: str) -> S:
    """``table`` as settings. Raises: ConfigError that lists every fault, each with its key and a hint."""
    values, faults = _checked(table, cls, "")
    if faults:
        known = ", ".join(field.name for field in fields(cls))  # type: ignore[arg-type]
        raise ConfigError(f"{where}: " + "; ".join(faults), hint=f"keys are {known}")
    return cls(**values)


def load_whole(path: Path, cls: type[S]) -> S:
    """As ``load``, of a file that must be there, with what only whoever uses a value would find: for a person's eyes
    and for a board that gets its settings from a card. Raises: ConfigError that lists every fault."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file", hint="without one every setting has its default")
    return check_whole(read_table(path), cls, str(path))


def check_whole(table: dict[str, Any], cls: type[S], where: str) -> S:
    """As ``check``, with what only whoever uses a value would find. Raises: ConfigError that lists every fault."""
    values, faults = _checked(table, cls, "")
    for key in ADDRESSES:
        try:
            address(values.get(key) or "localhost", 0)
        except ConfigError as fault:
            faults.append(f"{key}: {fault}")
    faults += faults_between(values.get("network"), values.get("source"))
    if values.get("pairing_code"):
        from fl_tiny.protocol import pairing  # noqa: PLC0415 - a daemon that is enrolled looks at no code

        try:
            pairing.from_text(values["pairing_code"])
        except RemoteError as fault:
            faults.append(f"pairing_code: {fault}")
    if faults:
        raise ConfigError(f"{where}: " + "; ".join(faults), hint="docs/config.md lists the keys")
    return cls(**values)


def to_text(table: dict[str, Any]) -> str:
    """A table of texts, numbers, truths, lists of texts and tables of these as TOML."""
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{name} = {_toml(each)}" for name, each in value.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but that TOML wants one more of them
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _checked(table: dict[str, Any], cls: type[Any], above: str) -> tuple[dict[str, Any], list[str]]:
    """Values of a table, and its faults, each with its key. above: the tables that it lies in, as ``network.``."""
    hints = get_type_hints(cls)
    faults: list[str] = []
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            faults.append(_unknown(above + key, [above + name for name in hints]))
            continue
        below = next((kind for kind in _kinds(hints[key]) if is_dataclass(kind)), None)
        if key == "preprocess":
            values[key], more = preprocess_of(value)
        elif below is not None and isinstance(value, dict):
            inner, more = _checked(value, cast(Any, below), f"{above}{key}.")
            values[key] = None if more else below(**inner)
        elif below is not None:
            more = [f"{above}{key}: it is a table: [{above}{key}]"]
        else:
            values[key], more = _value(above + key, value, hints[key])
        faults += more
    return values, faults


def _value(key: str, value: Any, hint: Any) -> tuple[Any, list[str]]:
    """One value as the dataclass holds it, and its faults."""
    if hint == tuple[str, ...]:
        texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
        fault = _ruled(key, tuple(value)) if texts else f"{key}: it is a list of texts"
        return (tuple(value) if texts else ()), [fault] if fault else []
    fault = _fault(key, value, hint)
    if fault:
        return None, [fault]
    return (float(value) if float in _kinds(hint) and not isinstance(value, str) else value), []


def address(text: str, default_port: int) -> tuple[str, int]:
    """``host:port``, ``[IPv6]:port`` or a host alone. Raises: ConfigError."""
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ConfigError(f"{text!r} is not an address", hint="write [IPv6]:PORT")
        port = port[1:]
    elif not colon or ":" in host:  # a bare host, or a bare IPv6 address
        host, port = text, ""
    if not host or (port and not (port.isdecimal() and int(port) <= 65_535)):
        raise ConfigError(f"{text!r} is not an address", hint="write HOST:PORT or [IPv6]:PORT")
    return host, int(port) if port else default_port


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file as it is. Raises: ConfigError when it is none, or too long."""
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
    except OSError as cause:
        raise ConfigError(f"{path}: {cause}") from cause
    return parse(raw, str(path))


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """The text of a TOML file. Raises: ConfigError."""
    if len(raw) > SIZE_LIMIT:
        raise ConfigError(f"{where}: more than {SIZE_LIMIT} B")
    try:
        table: dict[str, Any] = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise ConfigError(f"{where}: {cause}") from cause
    except RecursionError as cause:
        raise ConfigError(f"{where}: its arrays are too deep") from cause
    return table


def _unknown(key: str, known: list[str]) -> str:
    import difflib  # noqa: PLC0415 - 0.3 MiB that an idle device does not need

    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f"unknown key {key}" + (f", did you mean {near[0]}?" if near else "")


def _as_floats(value: Any, hint: Any) -> Any:
    """``value`` with integers as floats where the wire has floats: TOML may write [0, 1] for [0.0, 1.0]."""
    if isinstance(value, list):
        return [_as_floats(each, hint) for each in value]
    integer = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53
    return float(value) if integer and "float" in str(hint) else value


def _kinds(hint: Any) -> tuple[type, ...]:
    return get_args(hint) if get_origin(hint) is Union or get_args(hint) else (hint,)


def _fault(key: str, value: Any, hint: Any) -> str:
    kinds = _kinds(hint)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
    if not fits and not (float in kinds and number):
        wanted = next(kind.__name__ for kind in kinds if kind is not type(None))
        return f"{key}: {_shown(key, value)} is not a {wanted}"
    return _ruled(key, value)


def _ruled(key: str, value: Any) -> str:
    rule = RULES.get(key)
    return f"{key}: {_shown(key, value)} is not {rule[0]}" if rule and not rule[1](value) else ""


def _shown(key: str, value: Any) -> str:
    return "what stands there" if key in SECRET_KEYS else repr(value)[:200]
