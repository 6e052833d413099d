# SPDX-License-Identifier: Apache-2.0
"""The tables of a device's settings that are about its board: name, network, SSH, where samples come from."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KEPT = "kept"  # stands in a card's file for a Wi-Fi password that has been moved to the board
SSH_TYPES = "ssh-ed25519 ssh-rsa ecdsa-sha2-nistp256 ecdsa-sha2-nistp384 ecdsa-sha2-nistp521 sk-ssh-ed25519@openssh.com"


@dataclass(frozen=True, slots=True)
class Board:
    """[board]: who this board is."""

    name: str | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """[network]: the way to the gateway; without it cable and DHCP. password: of WPA2, or its key, or ``KEPT``."""

    ssid: str | None = None
    password: str | None = None
    country: str | None = None
    hidden: bool = False
    interface: str | None = None
    address: str | None = None
    gateway: str | None = None
    dns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ssh:
    """[ssh]: who may log in as root; nobody without it."""

    authorized_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """[source]: where samples come from. kind: spool, camera, or the socket alone, which there always is."""

    kind: str = "spool"
    spool: str = "/var/lib/fl-tiny/spool"
    socket: str = "/run/fl-tiny/source/socket"
    camera: str = "/dev/video0"
    every: float = 1.0
    label_file: str | None = None
    button: str | None = None
    button_label: str | None = None
    kept: int = 256
    kept_minutes: float = 60.0


def is_ip(value: str) -> bool:
    """Is ``value`` an IPv4 or IPv6 address?"""
    import ipaddress  # noqa: PLC0415 - for keys that are seldom given

    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _is_path(value: str) -> bool:
    return value.startswith("/") and "\0" not in value and len(value) <= 4096


def _is_password(value: str) -> bool:
    """A passphrase of WPA2, 256 bits of its key, or ``KEPT``.   Source: IEEE 802.11-2020, J.4.1."""
    return value == KEPT or bool(re.fullmatch(r"[\x20-\x7e]{8,63}|[0-9a-fA-F]{64}", value))


def _is_ssh_key(value: str) -> bool:
    """One line of an authorized_keys file without options.   Source: sshd(8); RFC 4253, 6.6: the type comes again."""
    found = re.fullmatch(r"(\S+) ([A-Za-z0-9+/]+={0,2})( [^\n\r\0]*)?", value.strip())
    if not found or found[1] not in SSH_TYPES.split() or len(value) > 8192:
        return False
    try:
        blob = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return False
    return blob.startswith(len(found[1]).to_bytes(4, "big") + found[1].encode()) and len(blob) > len(found[1]) + 36


def _is_interface(value: str) -> bool:
    import ipaddress  # noqa: PLC0415

    try:
        ipaddress.ip_interface(value)
    except ValueError:
        return False
    return "/" in value


Rule = tuple[str, Callable[[Any], bool]]
RULES: dict[str, Rule] = {
    "board.name": (
        "1 to 63 letters, digits and inner hyphens",  # RFC 1123, 2.1
        lambda v: bool(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", v)),
    ),
    "network.ssid": ("1 to 32 bytes", lambda v: 1 <= len(v.encode()) <= 32),
    "network.password": (f"8 to 63 printable characters, 64 hexadecimal digits or {KEPT}", _is_password),
    "network.country": ("two capital letters", lambda v: bool(re.fullmatch(r"[A-Z]{2}", v))),
    "network.interface": ("1 to 15 letters and digits", lambda v: bool(re.fullmatch(r"[A-Za-z0-9._-]{1,15}", v))),
    "network.address": ("an IP address with its prefix, as 192.168.1.20/24", _is_interface),
    "network.gateway": ("an IP address", is_ip),
    "network.dns": ("IP addresses, 8 at most", lambda v: len(v) <= 8 and all(map(is_ip, v))),
    "ssh.authorized_keys": (
        "lines as in id_ed25519.pub, 16 at most",
        lambda v: len(v) <= 16 and all(map(_is_ssh_key, v)),
    ),
    "source.kind": ("spool, camera or socket", lambda v: v in ("spool", "camera", "socket")),
    "source.spool": ("a path that begins with /", _is_path),
    "source.socket": ("a path that begins with /, 100 bytes at most", lambda v: _is_path(v) and len(v.encode()) <= 100),
    "source.camera": ("a path that begins with /", _is_path),
    "source.every": ("0.05 to 86400 seconds", lambda v: 0.05 <= v <= 86_400),
    "source.label_file": ("a path that begins with /", _is_path),
    "source.button": ("CHIP:LINE, as gpiochip0:17", lambda v: bool(re.fullmatch(r"gpiochip\d{1,3}:\d{1,3}", v))),
    "source.button_label": ("1 to 48 bytes that can be seen", lambda v: 1 <= len(v.encode()) <= 48 and v.isprintable()),
    "source.kept": ("1 to 4096", lambda v: 1 <= v <= 4096),
    "source.kept_minutes": ("1 to 10080 minutes", lambda v: 1 <= v <= 10_080),
}
SECRET_KEYS = frozenset({"network.password", "pairing_code"})  # no message shows what stands there


def faults_between(network: Network | None, source: Source | None) -> list[str]:
    """What is wrong with keys that are right each for itself."""
    faults = []
    if network is not None:
        if network.ssid is None:
            faults += [
                f"network.{key}: there is no network.ssid"
                for key in ("password", "country", "hidden")
                if getattr(network, key)
            ]
        if network.address is None:
            faults += [
                f"network.{key}: there is no network.address" for key in ("gateway", "dns") if getattr(network, key)
            ]
    if source is not None and (source.button is None) != (source.button_label is None):
        faults.append("source.button and source.button_label: one is given without the other")
    return faults
