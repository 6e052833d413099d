# SPDX-License-Identifier: Apache-2.0
"""Twenty devices upload through a network that loses, repeats and reorders; the control is one request at a time."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fl_tiny.net.coap import Client
from tests.net.relay import Faults, Relay

from .light import WIDE, Harness, free_port

DEVICES = 20
REPEATED, REORDERED_S = 0.02, 0.01


@dataclass
class Seen:
    """What a run under loss came to. took: seconds of each upload that was receipted."""

    wanted: int
    took: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def within(self, seconds: float) -> float:
        """The share of uploads that took no longer."""
        return sum(t <= seconds for t in self.took) / self.wanted

    def quantile(self, share: float) -> float:
        """The time that this share of all uploads took at most; infinite when fewer came through."""
        at = math.ceil(share * self.wanted) - 1
        return sorted(self.took)[at] if at < len(self.took) else math.inf

    def __str__(self) -> str:
        p50, p99 = self.quantile(0.5), self.quantile(0.99)
        return f"{len(self.took)} of {self.wanted} uploads in {self.seconds:.0f} s, p50 {p50:.2f} s, p99 {p99:.2f} s"


async def uploads(root: Path, lose: float, rounds: int, limit_s: float, *, lan_timing: bool) -> Seen:
    """Rounds of all devices against a gateway in a process of its own, ``lose`` each way, for ``limit_s`` at most."""
    harness = Harness(root, DEVICES, model=WIDE, lan_timing=lan_timing)
    port = free_port()
    gateway = await harness.gateway(port)
    faults = Faults(lose=lose, repeat=REPEATED, delay_s=0.002, jitter_s=REORDERED_S)
    relays = [Relay(port, faults, place) for place in range(DEVICES)]
    began = time.monotonic()
    lives = asyncio.gather(*(d.live(r.port, rounds) for d, r in zip(harness.devices, relays, strict=True)))
    try:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(lives, limit_s)
    finally:
        gateway.terminate()
        await gateway.wait()
        for relay in relays:
            relay.close()
    took = [seconds for device in harness.devices for seconds in device.took]
    return Seen(max(rounds * DEVICES, len(took)), took, time.monotonic() - began)


def run(root: Path, lose: float, rounds: int, limit_s: float, *, lan_timing: bool = False) -> Seen:
    seen = asyncio.run(uploads(root, lose, rounds, limit_s, lan_timing=lan_timing))
    print(f"Shows 1: loss {lose:.0%} each way, lan_timing {lan_timing}: {seen}", file=sys.stderr)
    return seen


@pytest.fixture
def stop_and_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Confirmable requests one after the other with RFC 7252's timing, anew when one fails: as plain Block1 does it."""

    async def put_all(self: Client, path_of: Any, body: bytes, form: int, *, held: bytes, check: Any) -> None:
        at = 0
        while at < len(body):
            sessions = self.counters.handshakes_ok
            check(await self.request("PUT", path_of(at), body[at : at + 1024], form))
            at = at + 1024 if self.counters.handshakes_ok == sessions else 0

    monkeypatch.setattr(Client, "put_all", put_all)
    monkeypatch.setattr("fl_tiny.net.window.Way.timeout_s", 60.0)
    yield


@pytest.mark.parametrize(("lose", "p99_s"), [(0.01, 5.0), (0.1, 15.0)])
def test_uploads_under_loss_are_quick(tmp_path: Path, lose: float, p99_s: float) -> None:
    assert run(tmp_path, lose, 2, 120).quantile(0.99) <= p99_s


def test_uploads_pass_a_network_that_loses_a_third_each_way(tmp_path: Path) -> None:
    assert run(tmp_path, 0.3, 1, 300).within(60) >= 0.95


def test_one_request_at_a_time_misses_that_figure(tmp_path: Path, stop_and_wait: None) -> None:
    assert run(tmp_path, 0.3, 1, 90).within(60) < 0.95


@pytest.mark.full
@pytest.mark.parametrize(("lose", "share", "within_s"), [(0.01, 0.99, 5.0), (0.1, 0.99, 15.0), (0.3, 0.99, 180.0)])
@pytest.mark.parametrize("lan_timing", [False, True])
def test_two_hundred_uploads(tmp_path: Path, lose: float, share: float, within_s: float, lan_timing: bool) -> None:
    assert run(tmp_path, lose, 10, 1200, lan_timing=lan_timing).within(within_s) >= share
