# SPDX-License-Identifier: Apache-2.0
"""A gateway and its devices on this machine, each a process of its own: enrolled, taught, run, and measured."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fl_tiny import statedir
from fl_tiny.device.layout import CURRENT
from fl_tiny.errors import ConfigError, EnvironmentFault
from fl_tiny.gateway.store import Store
from fl_tiny.lab import watch
from fl_tiny.lab.children import Child, Children
from fl_tiny.lab.measure import Files, Measured, Result, found_in, measured, runtime
from fl_tiny.lab.relay import HOST, Relay

MARKER = ".fl-tiny-demo"  # a folder that holds it is an earlier demo's, and may be replaced
FOLDERS = ("gateway", "devices", "data", "models", "logs")
PAGE, FIGURES = "report.html", "report.json"
SWEEP = ("20", "all", "10", "5")  # labels a class; the longest first
CODES_LAST = "2h"
DEADLINE_S = 120  # of a round: a device that dies holds the others up no longer
COLD_WAIT_S = 60.0


class Progress(Protocol):
    """Where a demo says how far it is."""

    def line(self, text: str) -> None:
        """Something is done."""

    def status(self, text: str) -> None:
        """Something is going on; only the last word of this kind matters."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of a demo. labels: a class and device; None: all there are.   runtime: what devices run on."""

    devices: int
    rounds: int
    labels: int | None
    out: Path
    runtime: str | None = None


def prepare(out: Path) -> None:
    """Make ``out`` an empty folder of a demo.

    Raises: ConfigError when it holds something else, or a demo runs there; EnvironmentFault.
    """
    hint = "give another --out DIR"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a folder", hint=hint)
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise ConfigError(f"{out} is not empty, and not an earlier demo's", hint=hint)
    if (out / "gateway").is_dir() and statedir.is_running(out / "gateway"):
        raise ConfigError(f"a demo is running in {out}", hint=hint)
    try:
        for name in FOLDERS:
            if (out / name).exists():
                shutil.rmtree(out / name)
            if name != "gateway":
                (out / name).mkdir(parents=True)
        for name in (PAGE, FIGURES):
            (out / name).unlink(missing_ok=True)
        (out / MARKER).touch()
    except OSError as cause:
        raise EnvironmentFault(f"cannot write {out}: {cause.strerror}") from cause


async def run(options: Options, progress: Progress) -> Result:
    """A whole demo in ``options.out``, which ``prepare`` has made ready; no child outlives this.

    Raises: EnvironmentFault when a child fails.
    """
    children = Children(options.out / "logs")
    try:
        return await _Demo(options, children, progress).run()
    finally:
        await children.end()


class _Demo:
    """The steps of one demo, in the order of ``run``."""

    def __init__(self, options: Options, children: Children, progress: Progress) -> None:
        self._options, self._children, self._progress = options, children, progress
        self._began = time.monotonic()
        self._watch = watch.load()
        self._arms = self._watch.arms[: options.devices]
        self._gateway = options.out / "gateway"
        self._runtime = ("--runtime", options.runtime) if options.runtime else ()
        self._labelled = {arm.name: watch.labelled(arm, options.labels) for arm in self._arms}
        self._kept: dict[str, str] = {}  # which candidate each device holds

    async def run(self) -> Result:
        """All of it."""
        await self._init()
        with closing(Relay()) as relay:
            gateway = await self._start_gateway(relay, len(self._arms), "--rounds", str(self._options.rounds))
            await self._enrol_all(relay)
            passed = await self._rounds(relay, gateway)
            await self._start_gateway(relay, len(self._arms))
            await self._join(relay)
            await self._children.end()
        self._progress.line(f"{self._watch.cold.name} joined without labels and took the fleet's head")
        await _few_at_a_time([partial(self._alone, arm) for arm in self._arms])
        own = "all" if self._options.labels is None else str(self._options.labels)  # the fleet itself has shown that
        others = [labels for labels in SWEEP if labels != own]
        sweep = await _few_at_a_time([partial(self._sweep, labels) for labels in others])
        return await self._result(passed, sweep)

    # ---- a gateway and its devices --------------------------------------------------------------------------

    async def _init(self) -> None:
        """Write what the commands read, and make the gateway's directory."""
        self._path("before").write_bytes(self._watch.model)
        labels = self._options.out / "data" / "labels.txt"
        labels.write_text("\n".join(self._watch.classes) + "\n")
        for name, part in self._labelled.items():
            np.savez(self._data(name), x=part.x, y=part.y)
        files = ("--model", self._path("before"), "--labels", labels)
        await self._children.call("init", "gateway", "init", self._gateway, *files)

    async def _start_gateway(self, relay: Relay, clients: int, *more: str) -> Child:
        """Start the gateway, and let the relay lead to it."""
        wanted = ("--clients", str(clients), "--quorum", "1", "--deadline", str(DEADLINE_S), "--interval", "0", *more)
        gateway = await self._children.start(
            "gateway", "gateway", "run", self._gateway, "--bind", f"{HOST}:0", *wanted, "--json"
        )
        async for event in gateway.events():
            if event["event"] == "listening":
                relay.gateway_port = int(event["uri"].rpartition(":")[2])
                return gateway
        await gateway.succeeded()
        raise EnvironmentFault("the gateway ended before it listened")

    async def _enrol_all(self, relay: Relay) -> None:
        """Enrol every device with a code of its own, then teach it its samples."""
        codes = await self._codes(len(self._arms))
        enrolled = 0

        async def one(name: str, code: str) -> None:
            nonlocal enrolled
            await self._enroll(relay, name, code)
            files = (self._device(name), "--data", self._data(name))
            await self._children.call(name, "samples", "add", *files, *self._runtime)
            enrolled += 1
            self._progress.status(f"enrolled {enrolled} of {len(self._arms)} devices")

        await _few_at_a_time([partial(one, arm.name, code) for arm, code in zip(self._arms, codes, strict=True)])
        windows = sum(len(part.y) for part in self._labelled.values())
        self._progress.line(f"{enrolled} devices enrolled over DTLS, {windows} labelled windows on them")

    async def _codes(self, count: int) -> list[str]:
        asked = ("gateway", "pair", self._gateway, "--count", str(count), "--expires", CODES_LAST)
        made = await self._children.call("pair", *asked)
        return [each["code"] for each in (made if count > 1 else [made])]

    async def _enroll(self, relay: Relay, name: str, code: str) -> None:
        where = ("--gateway", f"{HOST}:{relay.port}", "--name", name)
        await self._children.call(name, "device", "enroll", self._device(name), "--code", code, *where)

    async def _rounds(self, relay: Relay, gateway: Child) -> int:
        """Run every device until the rounds are over; the UDP payload that took, in bytes."""
        before = relay.bytes
        devices = [await self._device_run(arm.name) for arm in self._arms]
        following = asyncio.create_task(_all_or_fault([self._follow(device) for device in devices]))
        telling = asyncio.create_task(self._tell(gateway))
        try:
            await asyncio.wait([following, telling], return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()  # a device's fault ends the demo; devices that are all done leave the gateway behind
            await telling
            passed = relay.bytes - before
            self._progress.status("every device chooses its model")
            await following
        finally:
            following.cancel()
            telling.cancel()
        return passed

    async def _device_run(self, name: str) -> Child:
        until = ("--rounds", str(self._options.rounds), "--json", *self._runtime)
        return await self._children.start(name, "device", "run", self._device(name), *until)

    async def _follow(self, device: Child) -> None:
        """Remember what a device keeps, until it ends."""
        async for event in device.events():
            if event["event"] == "model":
                self._kept[device.name] = event["kept"]
        await device.succeeded()

    async def _tell(self, gateway: Child) -> None:
        """A line of progress a round, until the gateway ends."""
        updates = 0
        async for event in gateway.events():
            if event["event"] == "update":
                updates += 1
                self._progress.status(f"round {event['number']} of {self._options.rounds}: {updates} updates")
            elif event["event"] == "round" and event["state"] == "published":
                updates = 0
                self._progress.line(self._round_line(event["number"]))
        await gateway.succeeded()

    def _round_line(self, number: int) -> str:
        store = Store.open(self._gateway / statedir.DATABASE)
        try:
            row = next(each for each in store.rounds() if each["number"] == number and each["state"] == "published")
        finally:
            store.close()
        began_at = "" if row["accuracy"] is None else f", began at {row['accuracy']:.3f} on {row['held']} held out"
        return f"round {number} of {self._options.rounds}: {row['received']} updates{began_at}, {row['seconds']:.1f} s"

    async def _join(self, relay: Relay) -> None:
        """A device without labels joins when the rounds are over, and takes the fleet's head."""
        cold = self._watch.cold.name
        await self._enroll(relay, cold, (await self._codes(1))[0])
        device = await self._children.start(cold, "device", "run", self._device(cold), "--json")

        async def chosen() -> None:
            async for event in device.events():
                if event["event"] == "model":
                    return

        try:
            await asyncio.wait_for(chosen(), COLD_WAIT_S)
        except asyncio.TimeoutError as cause:
            raise EnvironmentFault(f"{cold} never chose a model", hint=f"see {self._options.out / 'logs'}") from cause

    # ---- figures --------------------------------------------------------------------------------------------

    async def _alone(self, arm: watch.Arm) -> None:
        files = ("--data", self._data(arm.name), "--out", self._path(f"{arm.name}-alone"))
        self._progress.status(f"{arm.name} learns alone, for comparison")
        await self._children.call(arm.name, "model", "personalise", self._path("before"), *files, *self._runtime)

    async def _sweep(self, labels: str) -> dict[str, Any]:
        self._progress.status(f"simulating {labels} labels a class")
        asked = (labels, str(self._options.rounds), str(len(self._arms)), self._options.runtime or "")
        found: dict[str, Any] = await self._children.call("sweep", *asked, module="fl_tiny.lab.sweep")
        return found

    async def _result(self, passed: int, sweep: list[dict[str, Any]]) -> Result:
        rounds = await self._children.call("rounds", "gateway", "rounds", self._gateway)
        await self._children.call("export", "gateway", "export", self._gateway, "--out", self._path("fleet"))
        cold = self._watch.cold
        kept = self._device(cold.name) / statedir.MODEL / CURRENT
        before, after = (
            float(np.mean(found_in(path.read_bytes(), cold.later.x) == cold.later.y))
            for path in (self._path("before"), kept)
        )
        return Result(
            self._options.labels,
            self._watch.classes,
            tuple(self._measured(arm) for arm in self._arms),
            cold.name,
            (before, after),
            tuple(rounds),
            tuple(sweep),
            passed // (len(self._arms) * self._options.rounds),
            sum(part.x.nbytes for part in self._labelled.values()),
            time.monotonic() - self._began,
            runtime(),
        )

    def _measured(self, arm: watch.Arm) -> Measured:
        kept = self._device(arm.name) / statedir.MODEL / CURRENT
        files = Files(self._path("before"), self._path(f"{arm.name}-alone"), self._path("fleet"), kept)
        return measured(arm, files, len(self._labelled[arm.name].y), self._kept.get(arm.name, ""))

    def _path(self, model: str) -> Path:
        return self._options.out / "models" / f"{model}.tflite"

    def _data(self, name: str) -> Path:
        return self._options.out / "data" / f"{name}.npz"

    def _device(self, name: str) -> Path:
        return self._options.out / "devices" / name


async def _few_at_a_time(jobs: Iterable[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """What the jobs return, in order, run one a core; the first fault ends them all."""
    free = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def one(job: Callable[[], Awaitable[Any]]) -> Any:
        async with free:
            return await job()

    return await _all_or_fault([one(job) for job in jobs])


async def _all_or_fault(works: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What they return, in order; the first fault ends them all."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
