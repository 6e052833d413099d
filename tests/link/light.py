# SPDX-License-Identifier: Apache-2.0
"""Devices that speak the protocol over real DTLS but do not learn, all in one process, and a gateway to be killed.

What a light device sends depends on its place and the round alone, so that a run with faults must end in the same bits
as one without. As ``device/agent.py`` it keeps its update until the receipt, and sends the same bytes again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fl_tiny.device.link import Link
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.gateway import setup
from fl_tiny.gateway.store import Store
from fl_tiny.net import client
from fl_tiny.protocol import signed, wire

MODELS = Path(__file__).parents[1] / "models/bench"
SMALL, WIDE = "head_224-16-4", "head_1280x10"
LAYERS = {SMALL: 2, WIDE: 1}
PARAMETERS = {SMALL: 224 * 16 + 16 + 16 * 4 + 4, WIDE: 1280 * 10 + 10}
ROOT = Path(__file__).parents[2]
DOOMED = Path(__file__).with_name("doomed.py")
POLL_S = 0.1
HALVES_S = 5.0  # how long the second half of a fleet waits for one of the first, so that a round takes two transactions
FAST = {"LAN_STALE_S": 1.0, "ATTEMPT_S": 1.5, "HINT_S": 0.2, "POLL_S": 0.1, "REFUSED_S": 0.3}  # a kill costs seconds


@dataclass(frozen=True, slots=True)
class Kill:
    """Where the gateway is to end itself (doomed.py); round 0: nowhere."""

    number: int = 0
    point: str = "none"
    nth: int = 1


class Halves:
    """Lets the second half of a fleet join, and deliver, behind an answer to the first: never all in one transaction.

    A group commit may take all that comes together, so a fleet under load could do with one; but a kill at the second
    one has to find it.
    """

    def __init__(self) -> None:
        self._events: dict[tuple[bytes, str], asyncio.Event] = {}

    def done(self, rid: bytes, what: str) -> None:
        """One of the first half was answered."""
        self._event(rid, what).set()

    async def behind(self, rid: bytes, what: str) -> None:
        """Wait until one was, or it takes too long: the first half may have nothing to do in this round."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event(rid, what).wait(), HALVES_S)

    def _event(self, rid: bytes, what: str) -> asyncio.Event:
        return self._events.setdefault((rid, what), asyncio.Event())


@dataclass
class Device:
    """A light device and what it saw.

    receipts: (rid, SHA-256 of the signed update) of each that was accepted.   took: seconds of each upload.
    """

    place: int
    psk: bytes
    parameters: int = PARAMETERS[SMALL]
    lan_timing: bool = True
    halves: Halves | None = None
    seed: bytes = b""
    did: bytes = b""
    receipts: list[tuple[bytes, bytes]] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    head: int = 0
    answered: bytes = b""
    owed: tuple[bytes, bytes, bytes] | None = None  # rid, signed update, codes

    def __post_init__(self) -> None:
        self.seed = hashlib.sha256(b"light %d" % self.place).digest()
        self.did = signed.device_id(signed.public_key(self.seed))

    async def live(self, port: int, until: int) -> None:
        """Take part until the head ``until`` is published; a lost gateway is looked for again."""
        while self.head < until:
            with suppress(EnvironmentFault, RemoteError, OSError, asyncio.TimeoutError):
                link = await Link.open(("127.0.0.1", port), self.did.hex(), self.psk, lan_timing=self.lan_timing)
                try:
                    await self._serve(link, until)
                finally:
                    await link.close()
            await asyncio.sleep(0.1)

    async def _serve(self, link: Link, until: int) -> None:
        await link.register(self.did)
        if self.owed:
            with suppress(RemoteError):
                await link.answer(self.owed[0], wire.Said.JOIN)
            await self._deliver(link, again=True)
        while self.head < until:
            told = await link.heartbeat(wire.Heartbeat(self.head, 50))
            self.head = told.head
            if told.rid is not None and told.rid != self.answered:
                await self._take_part(link)
            await asyncio.sleep(min(told.poll_ms / 1000, POLL_S))

    async def _take_part(self, link: Link) -> None:
        offer = await link.offer()
        await self._turn(offer.rid, "join")
        await link.answer(offer.rid, wire.Said.JOIN)
        self._had_turn(offer.rid, "join")
        self.answered = offer.rid
        codes, samples = work(self.place, offer.number, self.parameters)
        update = wire.Update(offer.rid, self.did, offer.base, samples, hashlib.sha256(codes).digest(), len(codes))
        self.owed = offer.rid, signed.sign(wire.encode(update), self.seed), codes
        await self._deliver(link, again=False)

    async def _deliver(self, link: Link, *, again: bool) -> None:
        assert self.owed
        rid, message, codes = self.owed
        await self._turn(rid, "deliver")
        began = time.monotonic()
        try:
            receipt = await link.upload(message, codes, again=again)
        except RemoteError as fault:
            if fault.code == 0:  # no answer at all: it is still owed
                raise
        else:
            self.receipts.append((rid, receipt.update))
            self.took.append(time.monotonic() - began)
        self._had_turn(rid, "deliver")
        self.owed = None

    async def _turn(self, rid: bytes, what: str) -> None:
        if self.halves and self.place % 2:
            await self.halves.behind(rid, what)

    def _had_turn(self, rid: bytes, what: str) -> None:
        if self.halves and not self.place % 2:
            self.halves.done(rid, what)


@dataclass
class Run:
    """What a run left behind."""

    directory: Path
    devices: list[Device]
    kills: int  # that were carried out
    ends: list[int]  # exit codes of gateways that ended otherwise

    def faults(self) -> list[str]:
        """What of I2 and I3 (docs/failures.md) does not hold; I1: a gateway that ended by itself."""
        store = Store.open(self.directory / "state.db")
        found = [*store.faults(), *(f"a gateway ended with {code}" for code in self.ends)]
        store.close()
        with closing(sqlite3.connect(self.directory / "state.db")) as db:
            rows = db.execute("SELECT rid, did, signed FROM ledger WHERE status=0").fetchall()
        held = {(rid, did): hashlib.sha256(message).digest() for rid, did, message in rows}
        if len(held) != len(rows):
            found.append("I2: a device is in a round twice")
        lost = [d.place for d in self.devices for rid, digest in d.receipts if held.get((rid, d.did)) != digest]
        if lost:
            found.append(f"I3: receipts without a row: devices {lost}")
        return found

    def heads(self) -> list[bytes]:
        """The digest of each head, from 0 on."""
        with closing(sqlite3.connect(self.directory / "state.db")) as db:
            return [row[0] for row in db.execute("SELECT digest FROM version ORDER BY number")]


class Harness:
    """One gateway's directory, its light devices, and gateways one after the other on one port."""

    def __init__(self, root: Path, devices: int, *, model: str = SMALL, lan_timing: bool = True) -> None:
        self.directory = root / "gw"
        setup.initialise(self.directory, MODELS / f"{model}.tflite", None, setup.Wanted(LAYERS[model]))
        (self.directory / "fl-tiny.toml").write_text("handshakes_per_s = 100000\n")
        self.devices = [
            Device(place, hashlib.sha256(b"psk %d" % place).digest(), PARAMETERS[model], lan_timing)
            for place in range(devices)
        ]
        with closing(sqlite3.connect(self.directory / "state.db")) as db:
            rows = [(d.did, signed.public_key(d.seed), d.psk, "active") for d in self.devices]
            db.executemany("INSERT INTO device(did, pk, psk, state) VALUES(?,?,?,?)", rows)
            db.commit()

    def hurry(self) -> None:
        """Give a lost gateway up sooner than a device does, for a kill to cost seconds."""
        for name, seconds in FAST.items():
            setattr(client, name, seconds)

    async def gateway(self, port: int, kill: Kill = Kill(), control: str = "") -> asyncio.subprocess.Process:
        """A gateway of its own process at ``port``, to end itself at ``kill``."""
        words = [self.directory, port, len(self.devices), kill.number, kill.point, kill.nth, control]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            DOOMED,
            *map(str, words),
            stdout=asyncio.subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    async def run(self, rounds: int, kills: list[Kill], *, control: str = "", limit_s: float = 600.0) -> Run:
        """Run until ``rounds`` heads are published; a gateway that killed itself is followed by one for the next kill.

        control: doomed.py's; with one, the run ends behind the last kill and the time it takes to see what it did.
        """
        self.hurry()
        halves = Halves()
        for device in self.devices:
            device.halves = halves
        port = free_port()
        alive = asyncio.gather(*(device.live(port, rounds) for device in self.devices))
        killed, ends = 0, []
        try:
            for kill in [*kills, Kill()]:
                if control and kill == Kill():
                    await asyncio.sleep(0.5)
                    break
                process = await self.gateway(port, kill, control)
                ended = asyncio.ensure_future(process.wait())
                await asyncio.wait([ended, alive], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    process.kill()
                    await ended
                    break
                killed += ended.result() == -signal.SIGKILL
                ends += [ended.result()] if ended.result() != -signal.SIGKILL else []
        finally:
            done = alive.done()
            alive.cancel()
            with suppress(asyncio.CancelledError):
                await alive
        assert done or control, f"only head {max(d.head for d in self.devices)} of {rounds} after {limit_s:.0f} s"
        return Run(self.directory, self.devices, killed, ends)


def free_port() -> int:
    """A UDP port of loopback that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def work(place: int, number: int, parameters: int) -> tuple[bytes, int]:
    """(codes, samples) of a device in a round: the same in each run."""
    rng = np.random.default_rng([place, number])
    return rng.integers(-127, 128, parameters, dtype=np.int8).tobytes(), int(rng.integers(1, 200))


def unharmed(root: Path, devices: int, rounds: int) -> list[bytes]:
    """The digests of the heads that a run without faults comes to."""
    run = asyncio.run(Harness(root, devices).run(rounds, []))
    assert run.faults() == []
    return run.heads()[: rounds + 1]


def main() -> None:
    """``light.py ROOT DEVICES ROUNDS``: an unharmed run, its heads as JSON; for a look by hand."""
    root, devices, rounds = sys.argv[1:]
    harness = Harness(Path(root), int(devices))
    run = asyncio.run(harness.run(int(rounds), []))
    print(json.dumps({"faults": run.faults(), "heads": [digest.hex()[:8] for digest in run.heads()]}))


def random_kills(seed: int, rounds: range, points: tuple[str, ...], devices: int) -> list[Kill]:
    """One kill a round, at a point that the round surely comes to."""
    rng = random.Random(seed)
    kills = []
    for number in rounds:
        point = rng.choice(points)
        often = 2 if point.startswith(("answer", "receive")) else 4 * devices if point == "chunk" else 1
        kills.append(Kill(number, point, rng.randint(1, often)))
    return kills


if __name__ == "__main__":
    main()
