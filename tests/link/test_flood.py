# SPDX-License-Identifier: Apache-2.0
"""Lone ClientHellos and random datagrams at a real gateway whose paired devices go on working."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from e2e.fleet import Daemon, Fleet
from inprocess import enrolled

from fl_tiny import statedir
from fl_tiny.device.layout import PSK
from fl_tiny.device.link import Link
from fl_tiny.protocol import wire

HERE = Path(__file__).parent
RSS_KIB = 2048
FLOOR_S = 0.02  # a p99 below this is no slow device, whatever it is a multiple of
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@dataclass(frozen=True, slots=True)
class Figures:
    """What one flood did. larger: the most bytes by which an answer exceeded what it answered."""

    seconds: float
    rss_kib: int
    larger: int
    answered: int
    lines: int
    quiet_p99_s: float
    flood_p99_s: float

    def faults(self) -> list[str]:
        """Which of the bounds do not hold."""
        found = {
            "memory": self.rss_kib >= RSS_KIB,
            "answers": self.larger > 0,
            "log": self.lines > self.seconds + 1,
            "devices": self.flood_p99_s > max(2 * self.quiet_p99_s, FLOOR_S),
        }
        return [name for name, broken in found.items() if broken]


def rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


async def waits(links: list[Link], until: asyncio.Event) -> list[float]:
    """How long each request of the devices took, at 25 a second each."""
    found: list[float] = []

    async def one(link: Link) -> None:
        while not until.is_set():
            started = time.perf_counter()
            await link.heartbeat(wire.Heartbeat(1, 1))
            found.append(time.perf_counter() - started)
            await asyncio.sleep(0.04)

    await asyncio.gather(*(one(link) for link in links))
    return sorted(found)


async def flooded(port: int, count: int, seconds: float) -> tuple[int, int]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, HERE / "flooder.py", str(port), str(count), str(seconds), env=ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await child.communicate()
    larger, answered = map(int, out.split())
    return larger, answered


async def measured(gateway: Daemon, port: int, root: Path, count: int, devices: int = 4) -> Figures:
    """One flood of ``count`` hellos and ``count`` random datagrams, beside devices of this gateway."""
    links = []
    for n in range(devices):
        did = await enrolled(root / "gw", port, root / f"device{n}")
        psk = statedir.read_secret(root / f"device{n}", PSK)
        links.append(await Link.open(("127.0.0.1", port), did.hex(), psk))
        await links[-1].register(did)
    pid = gateway.process.pid
    await flooded(port, 200, 0.5)  # what the first of them allocate stays
    seconds = count / 1000
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:  # the same load on this machine, at nobody
        sink.bind(("127.0.0.1", 0))
        quiet_p99_s = await _p99(links, flooded(sink.getsockname()[1], min(count, 3000), min(seconds, 3.0)))
    before, lines, started = rss_kib(pid), len(gateway.log), time.monotonic()
    result: list[int] = []

    async def flood() -> None:
        result.extend(await flooded(port, count, seconds))

    flood_p99_s = await _p99(links, flood())
    took, rss, said = time.monotonic() - started, rss_kib(pid) - before, len(gateway.log) - lines
    for link in links:
        await link.close()
    figures = Figures(took, rss, *result, said, quiet_p99_s, flood_p99_s)
    print(f"Shows 5: {count} hellos and {count} random datagrams: {figures}")
    return figures


async def _p99(links: list[Link], work: Coroutine[Any, Any, object]) -> float:
    end = asyncio.Event()
    asking = asyncio.create_task(waits(links, end))
    await work
    end.set()
    found = await asking
    return found[len(found) * 99 // 100]


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.full)])
def test_a_flood_of_strangers_costs_no_memory_no_log_and_no_device_its_answer(tmp_path: Path, count: int) -> None:
    fleet = Fleet(tmp_path)
    try:
        figures = asyncio.run(measured(fleet.gateway(), fleet.port, tmp_path, count))
    finally:
        fleet.end()
    assert figures.answered >= count * 0.9, "the hellos reached the door"
    assert not figures.faults(), figures


def test_the_harness_sees_a_door_that_keeps_logs_echoes_and_dawdles(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    try:
        weak = fleet.gateway(command=[sys.executable, HERE / "weak.py"])
        figures = asyncio.run(measured(weak, fleet.port, tmp_path, 800))
    finally:
        fleet.end()
    assert figures.faults() == ["memory", "answers", "log", "devices"], figures
