# SPDX-License-Identifier: Apache-2.0
"""What a gateway bears: a real one under as many devices as are asked for, and what that took."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fl_tiny import statedir
from fl_tiny.errors import EnvironmentFault
from fl_tiny.files import write_atomic
from fl_tiny.gateway.gather import first_made, make_version
from fl_tiny.gateway.keys import GATEWAY_KEY
from fl_tiny.gateway.manifests import MODEL_KEY
from fl_tiny.gateway.models import BASE
from fl_tiny.gateway.store import Store
from fl_tiny.lab.children import Child, Children
from fl_tiny.lab.swarm import Swarm
from fl_tiny.protocol import signed, wire

Progress = Callable[[str], None]

MODEL = b"no model: nobody here runs one"
SWARM = 500  # devices a process (guess)
TICK_S = 2.0
CLOSE_S = 60.0  # for the gateway to see every device fetch the last head


@dataclass(frozen=True, slots=True)
class Options:
    """head: inputs and outputs of the one layer.   handshakes: new ones a second that the gateway admits."""

    devices: int
    head: tuple[int, int] = (64, 10)
    encoding: str = "int8"
    rounds: int = 1
    seed: int = 1
    handshakes: int = 50
    limit_s: float = 900.0


@dataclass(slots=True)
class Load:
    """What it took. Seconds; connecting_s: until the last device was registered, fetched_s: a round's end until the
    last device had its head.   failures: sessions given up, by what was said.   rss, cpu: of the gateway."""

    devices: int
    head: str
    encoding: str
    connecting_s: float = 0.0
    rounds_s: list[float] = field(default_factory=list)
    fetched_s: list[float] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    refused: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    rss_mib: float = 0.0
    cpu_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


async def run(options: Options, progress: Progress) -> Load:
    """A gateway of its own and its devices, until ``rounds`` rounds are over. Raises: EnvironmentFault."""
    with tempfile.TemporaryDirectory(prefix="fl-tiny-load-") as folder:
        root = Path(folder)
        children = Children(root)
        try:
            return await asyncio.wait_for(_run(root, children, options, progress), options.limit_s)
        except asyncio.TimeoutError:
            raise EnvironmentFault(f"not done within {options.limit_s:.0f} s") from None
        finally:
            await children.end()


def provision(directory: Path, options: Options) -> tuple[str, str, list[tuple[str, str]]]:
    """Make DIR a gateway whose devices are enrolled; its key, its manifest, and each device's seed and PSK."""
    inputs, outputs = options.head
    rng = np.random.default_rng(options.seed)
    statedir.create(directory)
    seeds = {name: os.urandom(signed.SEED_BYTES) for name in (GATEWAY_KEY, MODEL_KEY)}
    for name, seed in seeds.items():
        statedir.write_secret(directory, name, seed)
    write_atomic(directory / statedir.MODEL / BASE, MODEL)
    write_atomic(directory / statedir.SETTINGS, f"handshakes_per_s = {options.handshakes}\n".encode())
    shapes = ((outputs, inputs), (outputs,))
    encoded = wire.encode(wire.Manifest("load", 1, 1, hashlib.sha256(MODEL).digest(), len(MODEL), 1, shapes))
    weights = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    gateway_pk = signed.public_key(seeds[GATEWAY_KEY])
    store = Store.create(directory / statedir.DATABASE)
    store.put(
        manifest=signed.sign(encoded, seeds[MODEL_KEY]),
        gateway_pk=gateway_pk,
        model_pk=signed.public_key(seeds[MODEL_KEY]),
    )
    digest = hashlib.sha256(encoded).digest()
    store.add_first(make_version(0, first_made(weights), digest, seeds[GATEWAY_KEY]))
    devices = [(os.urandom(signed.SEED_BYTES), os.urandom(32)) for _ in range(options.devices)]
    keys = [signed.public_key(seed) for seed, _ in devices]
    store.add_devices([(signed.device_id(pk), pk, psk) for pk, (_, psk) in zip(keys, devices, strict=True)])
    store.close()
    return gateway_pk.hex(), encoded.hex(), [(seed.hex(), psk.hex()) for seed, psk in devices]


async def _run(root: Path, children: Children, options: Options, progress: Progress) -> Load:
    inputs, outputs = options.head
    load = Load(options.devices, f"{inputs}x{outputs}", options.encoding)
    gateway_pk, manifest, devices = provision(root / "gw", options)
    words = ("--bind", "127.0.0.1:0", "--interval", "0", "--rounds", options.rounds, "--encoding", options.encoding)
    clients = ("--clients", options.devices, "--quorum", 1)
    gateway = await children.start("gateway", "gateway", "run", root / "gw", *map(str, (*words, *clients)), "--json")
    events = gateway.events()
    port = int((await events.__anext__())["uri"].rsplit(":", 1)[1])
    watch = _Watch(load, progress)
    watching = [asyncio.create_task(watch.gateway(events))]
    swarms = []
    for at in range(0, options.devices, SWARM):
        part = Swarm(port, options.rounds, options.seed + at, gateway_pk, manifest, devices[at : at + SWARM])
        file = root / f"swarm{at}.json"
        write_atomic(file, json.dumps(asdict(part)).encode(), 0o600)
        swarms.append(await children.start(f"swarm{at}", str(file), module="fl_tiny.lab.swarm"))
    watching += [asyncio.create_task(watch.swarm(child)) for child in swarms]
    watching.append(asyncio.create_task(watch.machine(gateway)))
    try:
        for child in swarms:
            await child.succeeded()
        await asyncio.wait_for(gateway.succeeded(), CLOSE_S)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    return load


class _Watch:
    """Events of gateway and devices as figures."""

    def __init__(self, load: Load, progress: Progress) -> None:
        self._load, self._progress = load, progress
        self._began = self._opened = self._loop_time()
        self._connected = self._updates = self._heads = 0
        self._published: dict[int, float] = {}

    async def gateway(self, events: Any) -> None:
        """The gateway's events."""
        async for event in events:
            if event["event"] != "round":
                continue
            now = self._loop_time()
            if event["state"] == "open":
                self._opened, self._updates, self._heads = now, 0, 0
            elif event["state"] == "published":
                self._published[event["number"]] = now
                self._load.rounds_s.append(now - self._opened)
                self._load.fetched_s.append(0.0)
                self._load.updates.append(event["updates"])

    async def swarm(self, child: Child) -> None:
        """What one process of devices says."""
        async for event in child.events():
            now = self._loop_time()
            if event["event"] == "connected":
                self._connected += 1
                self._load.connecting_s = now - self._began
            elif event["event"] == "update":
                self._updates += 1
            elif event["event"] == "head":
                self._heads += 1
                number = event["number"]
                if number in self._published and number <= len(self._load.fetched_s):
                    self._load.fetched_s[number - 1] = now - self._published[number]
            elif event["event"] == "refused":
                self._load.refused += 1
            elif event["event"] == "failure":
                why = event["why"].split(" (")[0]
                self._load.failures[why] = self._load.failures.get(why, 0) + 1

    async def machine(self, gateway: Child) -> None:
        """The gateway's memory and CPU, and a line of progress."""
        folder = Path(f"/proc/{gateway.process.pid}")
        while True:
            try:
                status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                times = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                return
            self._load.rss_mib = max(self._load.rss_mib, float(status.get("VmHWM", "0").split()[0]) / 1024)
            self._load.cpu_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
            self._progress(
                f"{self._loop_time() - self._began:5.0f} s: {self._connected} of {self._load.devices} connected, "
                f"{len(self._load.rounds_s)} rounds, {self._updates} updates in this one, {self._heads} heads fetched"
            )
            await asyncio.sleep(TICK_S)

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 2) if isinstance(value, float) else value
