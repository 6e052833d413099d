# SPDX-License-Identifier: Apache-2.0
"""A booted board that takes releases, beside a gateway; its disk stays from test to test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.fleet import Fleet, cli, stop

from . import guest, releases
from .guest import Guest, until

FLASHED = "1.0"
DEV = "/var/lib/fl-tiny/device"
SAMPLES = 60
MODEL = guest.ROOT / "tests/models/bench/head_1280x10.tflite"  # a head of the size that budgets are stated for
INTERVAL_S = 20.0  # between two rounds


def missing() -> str:
    """Why there can be no such board here; empty when there can."""
    return guest.missing() or releases.missing()


class Rig:
    """An image of release 1.0, a gateway beside it, bundles for it; one board, which has enrolled and learns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = releases.keys_of(guest.ROOT / "build/update-keys")
        made = guest.build("qemu-arm64", folder / "out", "--ca", self.keys / "update-ca.pem", "--release", FLASHED)
        image = Path(made["image"])
        self.root = releases.slot_of(image, folder)
        self.disk = guest.copy(image, folder / "disk.img", 1024)
        self.fleet = Fleet(folder, MODEL, None)
        self.paces()
        self.key = guest.ssh_key(folder)
        self._provision()
        self.starts, self.samples = 0, 0
        self.board = self.start()
        self.board.ready()
        until(lambda: cli("gateway", "devices", self.fleet.gw), "device", 600, pause=3)
        until(lambda: self.board.do(f"test -e {DEV}/state.db && echo yes", code=None).strip(), "an enrolled device")
        self.learn(SAMPLES)
        self.trains()

    def _provision(self) -> None:
        """What a person writes on the card."""
        code = cli("gateway", "pair", self.fleet.gw)["code"]
        public = self.key.with_suffix(".pub").read_text().strip()
        card = self.folder / "card.toml"
        card.write_text(
            f'gateway = "{guest.HOST}:{self.fleet.port}"\npairing_code = "{code}"\n'
            f'[ssh]\nauthorized_keys = ["{public}"]\n'
        )
        cli("image", "provision", self.disk, "--config", card)

    def start(self, writes: Path | None = None) -> Guest:
        """The board with its power on."""
        self.starts += 1
        return Guest(self.disk, self.key, self.folder / f"serial-{self.starts}.log", writes=writes)

    def again(self) -> None:
        """The plug out and in."""
        self.board.end()
        self.board = self.start()

    def paces(self, interval: float = INTERVAL_S) -> None:
        """The gateway opens its rounds at another pace from now on."""
        for daemon in self.fleet.daemons[-1:]:
            assert stop(daemon) == 0
        (self.fleet.gw / "fl-tiny.toml").write_text(f"clients = 1\ninterval = {interval}\n")
        self.fleet.gateway()

    def learn(self, count: int) -> None:
        """Further samples; when this returns, the board has acknowledged them."""
        self.board.put(self.fleet.data(f"more-{self.samples}", count, self.samples), "/tmp/samples.npz")
        self.board.do(f"fl-tiny samples add {DEV} --data /tmp/samples.npz", patience=300)
        self.samples += count

    def trains(self, more: int = 1) -> None:
        """Until so many further rounds with the board's update have been published."""
        goal = self.rounds() + more
        until(lambda: self.rounds() >= goal, f"round {goal}", 600.0 * more, pause=2)

    def bundle(self, number: str, change: Any = lambda root: None) -> Path:
        """A release of the image's root, with a change."""
        made = self.folder / f"{number}.raucb"
        if not made.exists():
            slot = releases.release(self.root, number, self.folder, change)
            releases.bundle(slot, number, self.keys, made)
        return made

    def offered(self) -> dict[str, Any]:
        """What the gateway says of the release that it offers."""
        found: dict[str, Any] = cli("gateway", "bundle", "list", self.fleet.gw)[0]
        return found

    def rounds(self) -> int:
        """The last published round that an update of the board is in."""
        return int(cli("gateway", "devices", self.fleet.gw)[0]["last_round"] or 0)

    def status(self) -> dict[str, Any]:
        """What the board says of its device."""
        found: dict[str, Any] = self.board.report(f"device status {DEV}")
        return found

    def slot(self) -> str:
        """The slot that runs; empty while nothing answers."""
        return self.board.do("sed 's/.*rauc.slot=\\(.\\).*/\\1/' /proc/cmdline", code=None).strip()

    def record(self) -> dict[str, Any]:
        """What became of the last update."""
        found: dict[str, Any] = json.loads(self.board.do("cat /var/lib/fl-tiny/update/update.json"))
        return found

    def end(self) -> None:
        """Everything off."""
        self.board.end()
        self.fleet.end()
