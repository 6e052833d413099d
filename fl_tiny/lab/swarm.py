# SPDX-License-Identifier: Apache-2.0
"""Many devices in one process: real sessions and messages of the product, changes drawn instead of trained.

Started by lab/load.py as ``python -m fl_tiny.lab.swarm FILE``; says what happens as JSON, one object a line.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_tiny.device.agent import BACK_OFF_LIMIT_S, BACK_OFF_S
from fl_tiny.device.link import Link
from fl_tiny.device.store import HeldHead
from fl_tiny.errors import EnvironmentFault, FlTinyError, RemoteError
from fl_tiny.protocol import signed, update, wire

SAMPLES = 40
STEPS_SHOWN = 20.0  # standard deviation of a drawn change, in steps


@dataclass(frozen=True, slots=True)
class Swarm:
    """What a process of devices is told. devices: seed, PSK each, hexadecimal.   total: heads, then it is done."""

    port: int
    total: int
    seed: int
    gateway_pk: str
    manifest: str
    devices: list[tuple[str, str]]

    @classmethod
    def read(cls, path: Path) -> Swarm:
        """From the file that lab/load.py wrote."""
        return cls(**json.loads(path.read_text()))


class Board:
    """One device: what it holds between messages."""

    def __init__(self, swarm: Swarm, place: int) -> None:
        seed, psk = swarm.devices[place]
        self._swarm, self._seed, self._psk = swarm, bytes.fromhex(seed), bytes.fromhex(psk)
        self._did = signed.device_id(signed.public_key(self._seed))
        self._manifest = wire.decode(wire.Manifest, bytes.fromhex(swarm.manifest))
        self._manifest_digest = hashlib.sha256(bytes.fromhex(swarm.manifest)).digest()
        self._rng = np.random.default_rng([swarm.seed, place])
        self._jitter = random.Random(f"{swarm.seed} {place}")  # noqa: S311 - spreads devices out, hides nothing
        self._head = HeldHead(0, b"", b"")
        self._answered: bytes | None = None
        self._came = False

    async def run(self) -> None:
        """Take part until the last head is here; go on after faults, as the agent does."""
        failures = 0
        while True:
            try:
                link = await Link.open(("127.0.0.1", self._swarm.port), self._did.hex(), self._psk)
                try:
                    await link.register(self._did)
                    if not self._came:
                        say("connected")
                    self._came, failures = True, 0
                    return await self._serve(link)
                finally:
                    await link.close()
            except (EnvironmentFault, RemoteError) as fault:
                say("failure", why=str(fault)[:120])
                pause = self._jitter.uniform(0.2, 1.0) * min(BACK_OFF_S * 2**failures, BACK_OFF_LIMIT_S)
                failures += 1
                await asyncio.sleep(pause)

    async def _serve(self, link: Link) -> None:
        pk = bytes.fromhex(self._swarm.gateway_pk)
        while True:
            told = await link.heartbeat(wire.Heartbeat(self._head.version, SAMPLES))
            if told.head > self._head.version:
                wanted = (self._manifest_digest, self._manifest.body_size, pk)
                self._head = await link.head(*wanted, self._head, self._manifest.shapes)
                say("head", number=self._head.version)
                told = await link.heartbeat(wire.Heartbeat(self._head.version, SAMPLES))
            if self._head.version >= self._swarm.total:
                return
            if told.rid is not None and told.rid != self._answered:
                await self._take_part(link, told.rid)
            else:
                await asyncio.sleep(told.poll_ms / 1000)

    async def _take_part(self, link: Link, rid: bytes) -> None:
        offer = await link.offer()
        try:
            await link.answer(rid, wire.Said.JOIN)
            self._answered = rid
            codes = self._drawn(offer)
            digest = hashlib.sha256(codes).digest()
            encoding = None if offer.encoding == wire.BY_LINK else offer.encoding
            made = wire.Update(rid, self._did, offer.base, SAMPLES, digest, len(codes), encoding=encoding)
            await link.upload(signed.sign(wire.encode(made), self._seed), codes, again=False)
            say("update")
        except RemoteError as fault:
            if not fault.code:
                raise
            self._answered = rid
            say("refused", why=str(fault)[:120])

    def _drawn(self, offer: wire.Offer) -> bytes:
        """Codes of a change that nobody trained."""
        steps = update.per_parameter(offer.steps, self._manifest.shapes)
        change = self._rng.normal(scale=STEPS_SHOWN, size=self._manifest.parameters) * steps
        encoding = offer.encoding if offer.encoding in (1, 2) else wire.Encoding.INT8
        return update.encode_change(change, steps, self._rng, encoding, offer.kept or 1).codes


def say(event: str, **facts: Any) -> None:
    """One line for lab/load.py."""
    print(json.dumps({"event": event, "at": time.monotonic(), **facts}), flush=True)


async def serve(swarm: Swarm) -> None:
    """All devices until each has the last head."""
    await asyncio.gather(*(Board(swarm, place).run() for place in range(len(swarm.devices))))


def main() -> None:
    """The process's entry: the file as the argument."""
    try:
        asyncio.run(serve(Swarm.read(Path(sys.argv[1]))))
    except FlTinyError as fault:
        sys.exit(f"swarm: {fault}")


if __name__ == "__main__":
    main()
