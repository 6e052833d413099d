# SPDX-License-Identifier: Apache-2.0
"""A stranger at a gateway's port: ``stranger.py PORT ADDRESS IDENTITY PER_S SECONDS``.

Sends from ADDRESS, until stdin closes or SECONDS are over, PER_S handshakes a second: ClientHellos with cookies that it
was given, the same ones again and with other randoms, whole handshakes with a wrong key, and noise. Prints as JSON what
it sent, and how many of its handshakes got a ServerHello.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import sys
import time

from fl_tiny.net.dtls import Context, Session
from fl_tiny.net.records import records

SOCKETS = 200
WRONG_KEYS = 24  # whole handshakes at a time


class Stranger:
    def __init__(self, port: int, address: str, identity: str) -> None:
        self.rng = random.Random(14)
        self.sent = self.cookies = self.served = 0
        self.contexts = [Context.client(identity, os.urandom(32)) for _ in range(WRONG_KEYS)]
        self.hello = self.contexts[0].connect().take()[0]
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.asked: dict[int, bytes] = {}  # the hello that a socket has sent
        self.whole: dict[int, Session] = {}
        for _ in range(SOCKETS):
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.bind((address, 0))
            one.connect(("127.0.0.1", port))
            one.setblocking(False)
            self.sockets[one.fileno()] = one
            self.poll.register(one, select.EPOLLIN)
        self.turn = list(self.sockets)

    def send(self, number: int, data: bytes) -> None:
        try:
            self.sockets[number].send(data)
            self.sent += 1
        except OSError:
            pass

    def knock(self, n: int) -> None:
        """One handshake's first datagram."""
        number = self.turn[n % SOCKETS]
        if n % SOCKETS < WRONG_KEYS:
            if number in self.whole:
                self.whole[number].close()
            self.whole[number] = self.contexts[n % SOCKETS].connect()
            self.flush(number)
            return
        self.asked[number] = self.hello[:27] + self.rng.randbytes(32) + self.hello[59:]
        self.send(number, self.asked[number])

    def flush(self, number: int) -> None:
        for data in self.whole[number].take():
            self.send(number, data)

    def hear(self, wait_s: float) -> None:
        for number, _ in self.poll.poll(wait_s, 64):
            try:
                data = self.sockets[number].recv(65_535)
            except OSError:
                continue
            first = next(records(data), b"")
            kind = first[13] if first[:1] == b"\x16" else 0
            self.cookies += kind == 3
            self.served += kind == 2
            if number in self.whole:
                self.whole[number].receive(data)
                self.flush(number)
            elif kind == 3 and number in self.asked:
                asked, cookie = self.asked.pop(number), data[28 : 28 + data[27]]
                body = asked[25:60] + bytes([len(cookie)]) + cookie + asked[61:]
                size = len(body).to_bytes(3, "big")
                made = b"\x01" + size + b"\0\1" + bytes(3) + size + body
                record = asked[:5] + bytes(5) + b"\1" + len(made).to_bytes(2, "big") + made
                self.send(number, record)
                self.send(number, record)  # again
                self.send(number, record[:27] + self.rng.randbytes(32) + record[59:])
                self.send(number, self.rng.randbytes(self.rng.randint(1, 600)))


def main() -> None:
    port, address, identity = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    per_s, seconds = float(sys.argv[4]), float(sys.argv[5])
    stranger = Stranger(port, address, identity)
    began, n = time.monotonic(), 0
    print("{}", flush=True)
    while (now := time.monotonic()) < began + seconds and not select.select([sys.stdin], [], [], 0)[0]:
        while n < (now - began) * per_s:
            stranger.knock(n)
            n += 1
            if n % 8 == 0:
                stranger.hear(0)
        stranger.hear(0.002)
    took = time.monotonic() - began
    facts = {"handshakes": n, "datagrams": stranger.sent, "cookies": stranger.cookies, "served": stranger.served}
    print(json.dumps({"seconds": took, **facts}), flush=True)


if __name__ == "__main__":
    main()
