# SPDX-License-Identifier: Apache-2.0
"""What runs inside user-mode Linux: says what survived, then writes and acknowledges until the power is cut.

``guest.py ROLE ROOT SYNCHRONOUS [PRAGMA…]``: ROLE is ``gateway`` or ``device``, ROOT a directory on the disk that is
cut. A line ``state {...}`` comes first, then ``ack KIND NUMBER`` each time that the product would tell somebody.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from fl_tiny.device import store as device_store
from fl_tiny.device.intake import Sample
from fl_tiny.device.left import Body
from fl_tiny.device.store import DeviceStore, HeldHead, Journal
from fl_tiny.files import write_atomic
from fl_tiny.gateway import store as gateway_store
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Entry, OpenRound, Version

CODES = 13_000  # bytes of an update, and of the file that is written again and again
DEVICES = 8


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def gateway(root: Path) -> None:
    """Rounds of eight updates, each published; the ledger's own checks and all numbers of what is in it."""
    store = Store.open(root / "state.db")
    say("state " + json.dumps(gateway_state(store)))
    dids = [device.did for device in store.devices()]
    head = store.head()
    while True:
        opened = store.opened()
        if opened is None:
            opened = OpenRound(os.urandom(8), head.number + 1, head.number, 60.0, "train")
            store.open_round(opened)
        here = set(store.delivered(opened.rid))
        for did in dids:
            if did not in here:
                here.add(did)
                store.receive(opened.rid, [Entry(did, b"s" * 200, 3, None, None, None, None, os.urandom(CODES))])
                say(f"ack receive {count(head, list(here))}")
        body = os.urandom(500)  # heads stay: large ones would fill the disk within fifty cuts
        digest = hashlib.sha256(body).digest()
        head = Version(opened.number, digest, body, b"s" * 200, b"", (1.0,), 3 * len(dids))
        store.publish(opened.rid, head, 1.0)
        say(f"ack head {head.number}")


def gateway_state(store: Store) -> dict[str, Any]:
    """What is wrong with a ledger, and how much is in it."""
    head, opened = store.head(), store.opened()
    held = store.delivered(opened.rid) if opened else []
    return {"faults": store.faults(), "head": head.number, "receive": count(head, held)}


def count(head: Version, held: list[bytes]) -> int:
    """How many updates were received in all rounds."""
    return head.number * DEVICES + len(held)


def device(root: Path) -> None:
    """A device's rounds: sample, head, journal, settled; and a file that is switched."""
    store = DeviceStore.open(root / "state.db")
    path, number = root / "current.tflite", store.head().version
    torn = [] if path.read_bytes()[8:] == content(path) else ["current.tflite is torn"]
    file = int.from_bytes(path.read_bytes()[:8], "big")
    say("state " + json.dumps({"faults": torn, **device_state(store), "file": file}))
    while True:
        number += 1
        store.add_samples([Sample(os.urandom(1280), number % 4)], 100_000)
        say(f"ack sample {store.sample_count()[0]}")
        say(f"ack settle {store.rounds}")  # what can be had again is on the disk with the commit that follows it
        store.put_head(HeldHead(number, b"s" * 200, os.urandom(CODES)))
        owed = Journal(number, b"s" * 200, os.urandom(CODES), b"r" * 2 * CODES, b"x" * 16)
        store.put_journal(owed, Body(number.to_bytes(8, "big"), number, CODES, 40))
        say(f"ack journal {number}")
        say(f"ack head {number}")
        store.settle(b"r" * 2 * CODES, b"x" * 16, counted=True)
        start = number.to_bytes(8, "big")
        write_atomic(path, start + content(path, start))
        say(f"ack file {number}")


def device_state(store: DeviceStore) -> dict[str, Any]:
    """How much is in a device's database. Raises: DataError when it is damaged."""
    store.check()
    owed = store.journal()
    return {
        "head": store.head().version,
        "settle": store.rounds,
        "journal": owed.number if owed else store.get("last_round") or 0,
        "sample": store.sample_count()[0],
    }


def content(path: Path, start: bytes | None = None) -> bytes:
    """What follows the number in the file."""
    start = path.read_bytes()[:8] if start is None else start
    return hashlib.shake_256(start).digest(CODES)


def main() -> None:
    role, root, synchronous, *more = sys.argv[1:]
    for module in (gateway_store, device_store):
        pragmas = [p for p in module.PRAGMAS if not p.startswith("synchronous=")]
        module.PRAGMAS = (*pragmas, f"synchronous={synchronous}", *more)  # type: ignore[attr-defined]
    {"gateway": gateway, "device": device}[role](Path(root))


if __name__ == "__main__":
    main()
