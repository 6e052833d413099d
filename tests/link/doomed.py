# SPDX-License-Identifier: Apache-2.0
"""A gateway that kills itself: ``doomed.py DIR PORT CLIENTS ROUND POINT NTH [CONTROL]`` serves until it comes there.

POINT is ``METHOD.before``, ``METHOD.commit`` (all is written, COMMIT is not) or ``METHOD.after`` of a method of Store
that writes, or ``chunk``; the process sends itself SIGKILL at the NTH time in round ROUND. ROUND 0: never.
CONTROL ``early-receipt``: receipts leave and the process ends 0.2 s later, before it commits; which must lose them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_tiny.gateway import server, store, uploads
from fl_tiny.gateway.store import Store

METHODS = ("open_round", "answer", "receive", "publish")
POINTS = (*(f"{method}.{when}" for method in METHODS for when in ("before", "commit", "after")), "chunk")


class Doom:
    """Counts how often a point was passed in a round, and ends the process there."""

    def __init__(self, number: int, point: str, nth: int) -> None:
        self.number, self.point, self.left = number, point, nth
        self.at = 0  # the round that is open
        self.method = ""  # of Store, that runs

    def passes(self, point: str) -> None:
        if point == self.point and self.at == self.number:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, name: str) -> None:
        """Put points around a method of Store."""
        inner = getattr(Store, name)

        @functools.wraps(inner)
        def method(of: Store, *args: Any, **named: Any) -> Any:
            if name == "open_round":
                self.at = args[0].number
            self.method = name
            self.passes(f"{name}.before")
            done = inner(of, *args, **named)
            self.passes(f"{name}.after")
            self.method = ""
            return done

        setattr(Store, name, method)

    def watch_commits(self) -> None:
        inner = store.transaction

        @contextlib.contextmanager
        def transaction(*args: Any) -> Iterator[Any]:
            with inner(*args) as db:
                yield db
                self.passes(f"{self.method}.commit")

        store.transaction = transaction

    def watch_chunks(self) -> None:
        inner = uploads.Uploads.put

        def put(of: Any, *args: Any) -> None:
            inner(of, *args)
            self.passes("chunk")

        uploads.Uploads.put = put  # type: ignore[method-assign]


def commit_late() -> None:
    """The control: receipts leave before COMMIT, and the process ends before the first one."""

    def receive(of: Store, *args: Any) -> dict[bytes, Any]:
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGKILL)
        return {}

    Store.receive = receive  # type: ignore[method-assign]


def main() -> None:
    directory, port, clients, number, point, nth, *control = sys.argv[1:]
    doom = Doom(int(number), point, int(nth))
    if "early-receipt" in control:
        commit_late()
    for method in METHODS:
        doom.watch(method)
    doom.watch_commits()
    doom.watch_chunks()
    ledger = Store.open(Path(directory) / "state.db")
    opened = ledger.opened()
    doom.at = opened.number if opened else 0
    ledger.close()

    def emit(event: str, facts: dict[str, Any]) -> None:
        print(json.dumps({"event": event, **facts}), flush=True)

    options = server.RunOptions(f"127.0.0.1:{port}", None, None, int(clients), 1.0, 600.0, 0.0)
    server.run(Path(directory), options, emit)


if __name__ == "__main__":
    main()
