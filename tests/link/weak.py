# SPDX-License-Identifier: Apache-2.0
"""fl-tiny with a weak front door, for a control: it keeps, logs, echoes and dawdles over strangers' datagrams."""

from __future__ import annotations

import logging
import time

from fl_tiny.cli.main import entry
from fl_tiny.net.sessions import Datagram, Event, Peer, Table

KEPT: list[bytearray] = []
log = logging.getLogger("fl_tiny.weak")


def main() -> None:
    right = Table.receive

    def wrong(table: Table, peer: Peer, datagram: bytes, now: float) -> list[Event]:
        events = right(table, peer, datagram, now)
        if peer not in table._live and peer not in table._candidates:
            KEPT.append(bytearray(b"x" * 4096))
            log.warning("datagram bytes=%d", len(datagram))
            events.append(Datagram(peer, datagram + b"more"))
            time.sleep(0.003)
        return events

    Table.receive = wrong  # type: ignore[method-assign]
    entry()


if __name__ == "__main__":
    main()
