# SPDX-License-Identifier: Apache-2.0
"""Addresses that the network proposes for a gateway: which are taken, and in which order they are tried. No I/O."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fl_tiny.protocol.announced import marks_in

MOST_TRIED = 8  # a wrong one costs a handshake's deadline, 12 s
MOST_TAKEN = 64  # proposals of one look
ADDRESSES = 4  # of one answer
LINE_LIMIT = 200  # bytes of a proposal as a line
OUTPUT_LIMIT = MOST_TAKEN * LINE_LIMIT


@dataclass(frozen=True, slots=True)
class Proposal:
    """One address of one answer. marks: as in protocol/announced.py."""

    host: str
    port: int
    marks: tuple[str, ...]

    @property
    def address(self) -> str:
        """HOST:PORT, as a setting has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def proposed(
    txt: Mapping[bytes, bytes | None], hosts: Iterable[str], port: int | None, *, loopback: bool
) -> list[Proposal]:
    """What one answer proposes; none when it is not a gateway's. loopback: it was asked for there."""
    marks = marks_in(txt)
    if not marks or not port or not 0 < port < 65_536:
        return []
    return [Proposal(host, port, marks) for host in hosts if _is_usable(host, loopback=loopback)][:ADDRESSES]


def to_line(proposal: Proposal) -> str:
    """A proposal as the child prints it."""
    import json  # noqa: PLC0415 - 0.2 MiB that an agent which finds its gateway does not need

    return json.dumps([proposal.host, proposal.port, ",".join(proposal.marks)])


def from_lines(output: bytes) -> list[Proposal]:
    """What the child printed, at most ``MOST_TAKEN``; lines that are not proposals, or cut, are passed over."""
    import json  # noqa: PLC0415 - as above

    found: list[Proposal] = []
    for line in output[:OUTPUT_LIMIT].split(b"\n"):
        try:
            host, port, marks = json.loads(line[: LINE_LIMIT + 1])
        except (ValueError, TypeError, RecursionError):
            continue
        if not (isinstance(host, str) and type(port) is int and isinstance(marks, str)):
            continue
        found += proposed({b"fl": b"1", b"gw": marks.encode(errors="replace")}, [host], port, loopback=True)
    return found[:MOST_TAKEN]


def in_order(found: Iterable[Proposal], mark: str | None, tried: str | None, chance: random.Random) -> list[str]:
    """The addresses to try: those with the known gateway's mark first, else by chance, each once, ``MOST_TRIED``.

    By chance, so that whoever fills the list with false ones does not keep the right one out of it for ever.
    mark: None when no gateway is known yet.   tried: the address that has just failed.
    """
    shuffled = sorted(found, key=lambda proposal: proposal.address)
    chance.shuffle(shuffled)
    shuffled.sort(key=lambda proposal: mark not in proposal.marks)  # stable
    addresses = dict.fromkeys(proposal.address for proposal in shuffled if proposal.address != tried)
    return list(addresses)[:MOST_TRIED]


def is_loopback(host: str) -> bool:
    """Does the name or address mean this machine?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_usable(host: str, *, loopback: bool) -> bool:
    """An address of one host. Link-local IPv6 is not: its scope is a number that changes with the next boot."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_multicast or address.is_unspecified or host == "255.255.255.255":
        return False
    if address.version == 6 and (address.is_link_local or "%" in host):
        return False
    return loopback or not address.is_loopback
