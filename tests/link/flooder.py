# SPDX-License-Identifier: Apache-2.0
"""Noise at a port of this machine: ``flooder.py PORT COUNT SECONDS`` sends COUNT lone ClientHellos and COUNT random
datagrams in SECONDS, each hello from a port of its own, and prints what came back: the most bytes that one datagram
was answered with, less its own, and how many were answered.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import sys
import time

from fl_tiny.net.dtls import Context

OPEN = 400  # sockets at a time
SILENCE_S = 0.3


def main() -> None:
    port, count, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    rng = random.Random(11)
    contexts = [Context.client("dev", bytes(32)) for _ in range(20)]
    hellos = [context.connect().take()[0] for context in contexts]
    sent, most, answered = 0, -1 << 30, 0
    while sent < count:
        due = time.monotonic()  # anew behind each pause for answers: no burst makes up for it
        with contextlib.ExitStack() as stack:
            asked: dict[socket.socket, int] = {}
            for _ in range(min(OPEN, count - sent)):
                due += seconds / count
                time.sleep(max(0.0, due - time.monotonic()))
                for data in (hellos[sent % len(hellos)], rng.randbytes(rng.randint(1, 1400))):
                    one = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    one.connect(("127.0.0.1", port))
                    one.send(data)
                    asked[one] = len(data)
                sent += 1
            while ready := select.select(list(asked), [], [], SILENCE_S)[0]:
                for one in ready:
                    asked[one] -= len(one.recv(65_535))
                    answered += 1
                    most = max(most, -asked[one])
    print(most, answered)


if __name__ == "__main__":
    main()
