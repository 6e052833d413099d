# SPDX-License-Identifier: Apache-2.0
"""A member that asks as fast as it can and never waits as told: ``greedy.py PORT ADDRESS DID PSK``, until stdin closes.

Prints as JSON what it sent and what was answered, by CoAP code.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import select
import socket
import sys
import time
from collections import Counter

from fl_tiny.errors import FlTinyError
from fl_tiny.net.dtls import Context
from fl_tiny.protocol import wire

BURST = 64
LONGEST_S = 300.0


def option(delta: int, value: bytes) -> bytes:
    big = bytes([delta - 13]) if delta >= 13 else b""
    return bytes([min(delta, 13) << 4 | len(value)]) + big + value


class Greedy:
    def __init__(self, port: int, address: str, did: str, psk: str) -> None:
        self.rng = random.Random(14)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.context = Context.client(did, bytes.fromhex(psk))
        self.session = self.context.connect()
        self.answers: Counter[str] = Counter()
        self.sent, self.did = 0, bytes.fromhex(did)
        self.rid = bytes(8)
        self.handshake()
        self.ask(2, ("d",), wire.encode(wire.Register(self.did, (wire.VERSION,))))
        time.sleep(0.2)

    def handshake(self) -> None:
        end = time.monotonic() + 10
        while not self.session.established:
            assert time.monotonic() < end, "no session"
            self.flush()
            self.hear(0.1)
        self.flush()

    def flush(self) -> None:
        for data in self.session.take():
            try:
                self.socket.send(data)
            except BlockingIOError:
                select.select([], [self.socket], [], 0.05)

    def hear(self, wait_s: float) -> None:
        while select.select([self.socket], [], [], wait_s)[0]:
            wait_s = 0
            for message in self.session.receive(self.socket.recv(65_535)):
                if message[1] >= 0x40:
                    self.answers[f"{message[1] >> 5}.{message[1] & 31:02}"] += 1
                with contextlib.suppress(FlTinyError, ValueError):
                    self.rid = wire.decode(wire.Offer, message[message.index(b"\xff") + 1 :]).rid
            if self.session.ended:  # it begins anew, as a greedy one would
                self.session.close()
                self.session = self.context.connect()
                self.handshake()

    def ask(
        self, method: int, path: tuple[str, ...], payload: bytes = b"", observe: bool = False, block: bytes = b""
    ) -> None:
        """A non-confirmable request."""
        self.sent += 1
        head = bytes([0x52, method]) + (self.sent & 0xFFFF).to_bytes(2, "big") + self.rng.randbytes(2)
        at, options = 0, b""
        if observe:
            options, at = option(6, b""), 6
        for part in path:
            options, at = options + option(11 - at, part.encode()), 11
        if block:
            options += option(27 - at, block)
        self.session.send(head + options + (b"\xff" + payload if payload else b""))
        if self.sent % 8 == 0:
            self.flush()

    def anything(self) -> None:
        rng = self.rng
        sid = base64.urlsafe_b64encode(rng.randbytes(8)).decode().rstrip("=")
        match self.sent % 8:
            case 0:
                self.ask(1, ("d",))
            case 1:
                why = wire.Refusal(rng.randint(1, 1 << 30), 7, rng.randbytes(30).hex())
                self.ask(3, ("d",), wire.encode(wire.Heartbeat(0, 40, refusal=why)))
            case 2:
                self.ask(2, ("u", sid), rng.randbytes(300))
            case 3 | 4:
                self.ask(3, ("u", sid, str(8 * rng.randint(0, 60))), rng.randbytes(1024))
            case 5:
                self.ask(1, ("m",), observe=True)
            case 6:
                self.ask(2, ("o",), wire.encode(wire.Answer(self.rid, wire.Said.JOIN)))
            case 7:
                self.ask(2, ("u",), rng.randbytes(64), block=bytes([rng.randint(0, 15) << 4 | 8 | 2]))


def main() -> None:
    greedy = Greedy(int(sys.argv[1]), *sys.argv[2:5])
    print("{}", flush=True)
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end and not select.select([sys.stdin], [], [], 0)[0]:
        greedy.ask(1, ("o",))
        for _ in range(BURST):
            greedy.anything()
        greedy.hear(0)
    print(json.dumps({"sent": greedy.sent, "answers": greedy.answers}), flush=True)


if __name__ == "__main__":
    main()
