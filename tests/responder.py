# SPDX-License-Identifier: Apache-2.0
"""A scripted DNS-SD responder on loopback: it answers every question with the datagrams it was given."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

GROUP, PORT = "224.0.0.251", 5353  # RFC 6762
SERVICE = "_coaps._udp.local"
PTR, A, TXT, SRV = 12, 1, 16, 33


def name(text: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in text.split(".")) + b"\0"


def record(owner: str, kind: int, data: bytes) -> bytes:
    return name(owner) + struct.pack("!HHIH", kind, 1 if kind == PTR else 0x8001, 120, len(data)) + data


def answer(instance: str, host: str, port: int, txt: Sequence[bytes]) -> bytes:
    """The datagram of one service: PTR, SRV, TXT and A."""
    service, target = f"{instance}.{SERVICE}", f"{instance}.local"
    records = [
        record(SERVICE, PTR, name(service)),
        record(service, SRV, struct.pack("!HHH", 0, 0, port) + name(target)),
        record(service, TXT, b"".join(bytes([len(t)]) + t for t in txt)),
        record(target, A, socket.inet_aton(host)),
    ]
    return struct.pack("!6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


@contextlib.contextmanager
def answering(datagrams: Sequence[bytes]) -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((GROUP, PORT))
        loopback = socket.inet_aton("127.0.0.1")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + loopback)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        sock.settimeout(0.1)
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                with contextlib.suppress(socket.timeout):
                    question = sock.recv(9000)
                    if len(question) > 2 and not question[2] & 0x80:
                        for datagram in datagrams:
                            with contextlib.suppress(BlockingIOError):
                                sock.sendto(datagram, (GROUP, PORT))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(5)
