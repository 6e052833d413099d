# SPDX-License-Identifier: Apache-2.0
"""A stranger that floods the door, beside a fleet of its own network that connects and plays a round.

Backs docs/failures.md, rows 37 and 43, and docs/budgets.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from e2e.fleet import Daemon

from fl_tiny.lab.load import Options, provision
from fl_tiny.lab.swarm import Swarm
from fl_tiny.net.sessions import HANDSHAKE_S

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
DEVICES = 20
ADDRESS = "127.0.0.9"  # of the stranger; the devices are at 127.0.0.20 and on
PER_S = 2000
HEAD = (4096, 40)  # 164 KB of codes a device, so that a quiet round takes seconds
TIMES = 3


@dataclass(frozen=True, slots=True)
class Figures:
    """quiet_s, flood_s: until unconnected devices had a round's head; None: not in time. kept: at the end."""

    quiet_s: float
    flood_s: float | None
    per_s: float
    datagrams: int
    served: int
    kept: dict[str, Any]

    @property
    def slowed(self) -> bool:
        """Did the round need more than TIMES its quiet time?"""
        return self.flood_s is None or self.flood_s > TIMES * self.quiet_s


def python(script: str, *args: object) -> subprocess.Popen[str]:
    words = [sys.executable, str(HERE / script), *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, env=ENVIRONMENT, text=True, bufsize=1)


def round_s(gateway: Daemon, swarm: Swarm, root: Path, patience: float) -> float | None:
    """Seconds until DEVICES that were not connected have the head that all of them made."""
    file = root / "swarm.json"
    file.write_text(json.dumps(asdict(swarm)))
    with python("neighbours.py", file) as devices:
        assert devices.stdin and devices.stdout
        try:
            assert "ready" in devices.stdout.readline()
            began = time.monotonic()
            devices.stdin.write("\n")
            devices.stdin.close()
            try:
                found = gateway.event("round", patience, state="published", number=swarm.total)
            except AssertionError:
                assert gateway.process.poll() is None, "".join(gateway.log)
                return None
            assert found["updates"] == DEVICES
            devices.wait(30)
            return time.monotonic() - began
        finally:
            devices.kill()


def attack_flood(root: Path, datagrams: int, *door: str) -> Figures:
    """Rounds of 20 devices, quiet and beside 2,000 hostile handshakes a second from one address of their /24."""
    gateway_pk, manifest, devices = provision(root / "gw", Options(DEVICES, HEAD))
    command = [sys.executable, HERE / "doorkeeper.py", *door]
    words = ("--interval", 0, "--clients", DEVICES, "--quorum", 1)
    gateway = Daemon("gateway", "run", root / "gw", "--bind", "127.0.0.1:0", *words, command=command)
    try:
        port = int(gateway.event("listening")["uri"].rsplit(":", 1)[1])
        swarm = Swarm(port, 1, 1, gateway_pk, manifest, devices)
        quiet_s = round_s(gateway, swarm, root, 60)
        assert quiet_s is not None
        with python("stranger.py", port, ADDRESS, "00" * 8, PER_S, 3600) as stranger:
            assert stranger.stdin and stranger.stdout
            stranger.stdout.readline()
            began = time.monotonic()
            time.sleep(2)
            swarm = Swarm(port, 2, 2, gateway_pk, manifest, devices)
            flood_s = round_s(gateway, swarm, root, 2 * TIMES * quiet_s)
            time.sleep(max(0.0, began + datagrams / (4 * PER_S) - time.monotonic()))
            stranger.stdin.close()
            facts = json.loads(stranger.stdout.readline())
        time.sleep(HANDSHAKE_S + 1)
        gateway.signal(signal.SIGUSR1)
        kept = gateway.event("table")
        figures = Figures(
            quiet_s, flood_s, facts["handshakes"] / facts["seconds"], facts["datagrams"], facts["served"], kept
        )
        print(f"flood: {figures}; times {(flood_s or 0) / quiet_s:.2f}")
        return figures
    finally:
        gateway.end()


@pytest.mark.parametrize("datagrams", [30_000, pytest.param(1_000_000, marks=pytest.mark.full)])
def test_a_flood_from_one_address_keeps_no_device_of_its_network_out(tmp_path: Path, datagrams: int) -> None:
    figures = attack_flood(tmp_path, datagrams)
    assert figures.per_s > PER_S * 0.8 and figures.datagrams >= datagrams and figures.served > 0, "it was a flood"
    assert not figures.slowed, figures
    assert figures.kept["handshakes"] == 0 and figures.kept["sessions"] <= DEVICES, figures
    assert figures.kept["ssl"] == figures.kept["sessions"], figures


@pytest.mark.full  # 47 s; the door without cookies of its own is no code that a change could bring back
def test_control_the_old_door_lets_one_address_starve_its_network(tmp_path: Path) -> None:
    assert attack_flood(tmp_path, 0, "old").slowed
