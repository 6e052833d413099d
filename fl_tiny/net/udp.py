# SPDX-License-Identifier: Apache-2.0
"""UDP sockets and addresses: bind, resolve, and answer from the address that was asked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct

from fl_tiny.errors import ConfigError, EnvironmentFault
from fl_tiny.net.sessions import Peer

RECEIVE_BUFFER_BYTES = 1 << 20  # a thousand devices may answer at once; the kernel takes less if it must
ANCILLARY_BYTES = 128
_IP_PKTINFO = 8  # linux/in.h; the socket module has it from 3.14 on


def bound_socket(bind: str) -> socket.socket:
    """A UDP socket on ``host:port`` that tells to which address a datagram came; ``[::]`` takes IPv4 too.

    Raises: ConfigError, when ``bind`` is no such text; EnvironmentFault, when the address cannot be had.
    """
    host, port = split_address(bind)
    try:
        return _bound(host, port)
    except OSError as e:
        if host == "::" and e.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # a kernel without IPv6
            return bound_socket(f"0.0.0.0:{port}")
        hint = "is another gateway running?" if e.errno == errno.EADDRINUSE else ""
        raise EnvironmentFault(f"cannot listen on {bind}: {e.strerror}", hint) from e


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``. Raises: ConfigError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 1 << 16 and host) or (":" in host) != bracketed:
        raise ConfigError(f'"{text}" is not an address', 'write "host:port", IPv6 as "[::1]:5684"')
    return host.strip("[]"), int(port)


async def resolve(host: str, port: int) -> list[tuple[str, int, int]]:
    """Numeric host, port and scope of each address of ``host``. Raises: EnvironmentFault."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return [(host, port, 0)]
    try:  # as bytes: a str costs the idna codec, 1 MB
        name: bytes | str = host.encode("ascii") if host.isascii() else host
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_DGRAM)
    except OSError as e:
        raise EnvironmentFault(
            f"cannot find the address of {host}: {e.strerror}", "check the name and the network"
        ) from e
    addresses = [(str(a[0]), int(a[1]), int(a[3]) if len(a) == 4 else 0) for *_, a in found]
    return list(dict.fromkeys(addresses))


def local_address(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The packed local address that a datagram came to; empty when the kernel did not tell."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return data[:16]  # struct in6_pktinfo: address, interface
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return data[4:8]  # struct in_pktinfo: interface, local address, destination
    return b""


def source(peer: Peer, ip6: bool) -> list[tuple[int, int, bytes]]:
    """Ancillary data that makes an answer leave from the address that was asked."""
    if not peer.local:
        return []
    if ip6:
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, peer.local + struct.pack("=I", peer.scope))]
    return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4s", 0, peer.local, b""))]


def destination(peer: Peer, ip6: bool) -> tuple[str, int] | tuple[str, int, int, int]:
    """A peer as the socket module wants it."""
    return (peer.host, peer.port, 0, peer.scope) if ip6 else (peer.host, peer.port)


def _bound(host: str, port: int) -> socket.socket:
    ip6 = ":" in host
    sock = socket.socket(socket.AF_INET6 if ip6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if ip6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
