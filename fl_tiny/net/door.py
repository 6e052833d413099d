# SPDX-License-Identifier: Apache-2.0
"""Who may begin a DTLS handshake: cookies that hold for a minute and once, fair shares of addresses; no clock.

Nothing is kept of an address before it has returned a cookie, so a forged source fills no memory and spends no share.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from fl_tiny.net.buckets import Buckets
from fl_tiny.net.records import Hello, hello_verify_request

SECRET_S = 30.0  # a cookie holds for 30 to 60 s
SHARE = 8  # an address is sure of this part of what its prefix may have
USED = 1 << 16  # cookies that are remembered as used; when there are more, the secret is renewed early
_SECRET_BYTES = 32
_MARK_BYTES = 8  # of a cookie, to remember it by


class Cookies:
    """What a server sends to find out whether an address receives what it sends there. Source: RFC 6347, 4.2.1."""

    def __init__(self, random_bytes: Callable[[int], bytes], now: float) -> None:
        self._random_bytes = random_bytes
        self._periods: list[tuple[bytes, set[bytes]]] = []  # secret, and marks of used cookies: this one, the last
        self._since = now
        self._begin(now)

    def question(self, path: bytes, hello: Hello, now: float) -> bytes:
        """The datagram that asks for the hello again, with a cookie; it is shorter than any hello."""
        self._pass(now)
        return hello_verify_request(hello, _cookie(self._periods[0][0], path, hello))

    def holds(self, path: bytes, hello: Hello, now: float) -> bool:
        """Was the hello's cookie made for this hello, on this path, lately?"""
        self._pass(now)
        return any(hmac.compare_digest(hello.cookie, _cookie(secret, path, hello)) for secret, _ in self._periods)

    def spent(self, hello: Hello) -> bool:
        """Has the hello's cookie led to a handshake before?"""
        return any(hello.cookie[:_MARK_BYTES] in used for _, used in self._periods)

    def spend(self, hello: Hello, now: float) -> None:
        """The hello's cookie has led to a handshake, and leads to no other."""
        self._periods[0][1].add(hello.cookie[:_MARK_BYTES])
        if len(self._periods[0][1]) >= USED:
            self._begin(now)

    def _pass(self, now: float) -> None:
        if now >= self._since + 2 * SECRET_S:
            self._periods.clear()
        if now >= self._since + SECRET_S:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._periods = [(self._random_bytes(_SECRET_BYTES), set()), *self._periods[:1]]
        self._since = now


class Shares:
    """How many handshakes a second an address and its prefix may begin.

    An address is sure of an eighth of its prefix's rate. Beyond that it has what its prefix does not need: it leaves
    half of a second's worth to others. So a lone NAT has the whole rate, and a flood beside others an eighth.
    """

    def __init__(self, per_s: float) -> None:
        most = max(SHARE, per_s)
        self._own = Buckets(per_s / SHARE, max(1.0, per_s / SHARE))
        self._prefix = Buckets(per_s, most)
        self._reserve = most / 2

    def admits(self, host: str, now: float) -> bool:
        """May one more handshake of this address begin?"""
        own = not self._own.take(host, now)
        return not self._prefix.take(prefix_of(host), now, leave=0.0 if own else self._reserve)


def prefix_of(host: str) -> bytes:
    """The /24 of an IPv4 address, the /64 of an IPv6 one."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return address.packed[:8]
        address = address.ipv4_mapped
    return address.packed[:3]


def _cookie(secret: bytes, path: bytes, hello: Hello) -> bytes:
    return hmac.digest(secret, len(path).to_bytes(2, "big") + path + hello.bound, "sha256")
