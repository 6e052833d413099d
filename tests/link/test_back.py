# SPDX-License-Identifier: Apache-2.0
"""Twenty devices are back soon after their gateway was killed and started again, and after their NAT forgot them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from fl_tiny.device.link import Link
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.protocol import wire
from tests.net.relay import Faults, Relay

from .light import Harness, free_port

DEVICES = 20
MEDIAN_S, WORST_S = 10.0, 20.0


async def one_back(link: Link) -> float:
    """The seconds until a heartbeat that begins now is answered; one that is given up begins anew."""
    began = time.monotonic()
    while True:
        try:
            await link.heartbeat(wire.Heartbeat(0, 50))
            return time.monotonic() - began
        except (EnvironmentFault, RemoteError):
            await asyncio.sleep(0.2)


async def back(root: Path, what: str) -> list[float]:
    """Sorted seconds of all devices behind a ``restart`` or a ``rebinding NAT``."""
    harness, port = Harness(root, DEVICES), free_port()
    gateway = await harness.gateway(port)
    relays, links = [], []
    try:
        await asyncio.sleep(2)  # it starts
        for device in harness.devices:
            relays.append(Relay(port, Faults(), device.place))
            links.append(await Link.open(("127.0.0.1", relays[-1].port), device.did.hex(), device.psk, lan_timing=True))
            await links[-1].register(device.did)
        if what == "restart":
            gateway.kill()
            await gateway.wait()
            gateway = await harness.gateway(port)
        else:
            for relay in relays:
                relay.rebind()
        took = sorted(await asyncio.gather(*map(one_back, links)))
    finally:
        for link in links:
            await link.close()
        for relay in relays:
            relay.close()
        gateway.terminate()
        await gateway.wait()
    print(f"Shows 4: {what}, {DEVICES} devices: median {took[DEVICES // 2]:.1f} s, worst {took[-1]:.1f} s")
    return took


@pytest.mark.parametrize("what", ["restart", "rebinding NAT"])
def test_twenty_devices_are_back_in_time(tmp_path: Path, what: str) -> None:
    took = asyncio.run(asyncio.wait_for(back(tmp_path, what), 120))
    assert took[DEVICES // 2] <= MEDIAN_S and took[-1] <= WORST_S
