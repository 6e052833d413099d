# SPDX-License-Identifier: Apache-2.0
"""A booted image takes a release from its gateway, keeps it or leaves it, and boots whenever its plug was pulled."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.fleet import Fleet, cli

from . import guest, releases
from .guest import Guest, until

FLASHED, GOOD, BAD = "1.0", "2.0", "3.0"
DEV = "/var/lib/fl-tiny/device"
SAMPLES = 60
FETCH_S = 2400.0  # 66 MB through an emulated processor's DTLS
_absent = guest.missing() or releases.missing()
pytestmark = [pytest.mark.full, pytest.mark.skipif(bool(_absent), reason=f"no image to update here: {_absent}")]


class Rig:
    """An image of release 1.0, a gateway beside it, bundles for it; one board, whose disk stays from test to test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = releases.keys_of(guest.ROOT / "build/update-keys")
        made = guest.build("qemu-arm64", folder / "out", "--ca", self.keys / "update-ca.pem", "--release", FLASHED)
        image = Path(made["image"])
        self.root = releases.slot_of(image, folder)
        self.disk = guest.copy(image, folder / "disk.img", 1024)
        self.fleet = Fleet(folder)
        (self.fleet.gw / "fl-tiny.toml").write_text("clients = 1\ninterval = 30.0\n")
        self.fleet.gateway()
        self.key = guest.ssh_key(folder)
        self.provision()
        self.starts = 0
        self.board = self.start()

    def provision(self) -> None:
        """What a person writes on the card."""
        code = cli("gateway", "pair", self.fleet.gw)["code"]
        public = self.key.with_suffix(".pub").read_text().strip()
        card = self.folder / "card.toml"
        card.write_text(
            f'gateway = "{guest.HOST}:{self.fleet.port}"\npairing_code = "{code}"\n'
            f'[ssh]\nauthorized_keys = ["{public}"]\n'
        )
        guest.run("mcopy", "-o", "-i", f"{self.disk}@@4M", card, "::fl-tiny.toml")

    def start(self) -> Guest:
        """The board with its power on."""
        self.starts += 1
        return Guest(self.disk, self.key, self.folder / f"serial-{self.starts}.log")

    def again(self) -> None:
        """The plug out and in."""
        self.board.end()
        self.board = self.start()

    def bundle(self, number: str, change: Any = releases.kill_none) -> Path:
        made = self.folder / f"content-{number}.raucb"
        return (
            made
            if made.exists()
            else releases.bundle(releases.release(self.root, number, self.folder, change), self.keys)
        )

    def offered(self) -> dict[str, Any]:
        found: dict[str, Any] = cli("gateway", "bundle", "list", self.fleet.gw)[0]
        return found

    def rounds(self) -> int:
        """Rounds that an update of the board is in."""
        return int(cli("gateway", "status", self.fleet.gw)["round"])

    def slot(self) -> str:
        return self.board.do("sed 's/.*rauc.slot=\\(.\\).*/\\1/' /proc/cmdline").strip()

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.board.do("cat /var/lib/fl-tiny/update/update.json"))
        return found

    def is_settled(self) -> bool:
        """Is nothing on its way, as the boot state says?"""
        return self.board.report("device confirm --within 1s --offline 1s")["became"] == "settled"

    def end(self) -> None:
        self.board.end()
        self.fleet.end()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("update"))
    yield made
    made.end()


def trained(rig: Rig, more: int = 1) -> None:
    """Until so many further rounds have been published."""
    goal = rig.rounds() + more
    until(lambda: rig.rounds() >= goal, f"round {goal}", 600, pause=3)


def test_a_flashed_board_trains(rig: Rig) -> None:
    rig.board.ready()
    until(lambda: cli("gateway", "devices", rig.fleet.gw), "device", 600, pause=3)
    rig.board.put(rig.fleet.data("board", SAMPLES, 0), "/tmp/samples.npz")
    until(lambda: rig.board.do(f"test -e {DEV}/state.db && echo yes", code=None).strip(), "an enrolled device")
    rig.board.do(f"fl-tiny samples add {DEV} --data /tmp/samples.npz", patience=300)
    trained(rig)
    assert rig.slot() == "A"


def test_what_is_foreign_flipped_or_older_is_refused_on_the_board(rig: Rig) -> None:
    foreign = releases.keys_of(rig.folder / "foreign")
    content = releases.small("9.0", rig.folder)
    whole = releases.bundle(content, rig.keys)
    cases = {
        releases.bundle(content, foreign, "foreign"): "signature",
        releases.flipped(whole): "rauc",
        releases.bundle(releases.small("0.9", rig.folder), rig.keys): "older than 1.0",
    }
    for made, why in cases.items():
        rig.board.put(made, "/data/b.raucb")
        said = rig.board.do("fl-tiny device update /data/b.raucb 2>&1; echo exit=$?", patience=300)
        assert "exit=65" in said and why in said.lower(), said
    rig.board.do("rm /data/b.raucb")
    assert rig.board.do("fl-tiny device slot get-primary").strip() == "A"


def test_a_release_comes_over_the_lan_is_confirmed_and_trains_on(rig: Rig) -> None:
    cli("gateway", "bundle", "add", rig.fleet.gw, rig.bundle(GOOD))
    until(lambda: rig.offered()["running"], "board that runs it", FETCH_S, pause=5)
    rig.board.ready()
    assert rig.slot() == "B"
    until(lambda: rig.record()["state"] == "confirmed", "confirmation", 300, pause=3)
    assert rig.board.do("fl-tiny device slot get-primary").strip() == "B"
    assert rig.board.report(f"device status {DEV}")["samples"] == SAMPLES
    trained(rig)
    rig.again()
    rig.board.ready()
    assert rig.slot() == "B", "it stays"


def test_a_release_that_cannot_reach_its_gateway_is_left_by_itself(rig: Rig) -> None:
    cli("gateway", "bundle", "add", rig.fleet.gw, rig.bundle(BAD, releases.numb))
    until(lambda: rig.offered()["refused"], "refusal", FETCH_S, pause=5)
    assert "did not reach its gateway within 60 s" in rig.offered()["why"]
    rig.board.ready()
    assert rig.slot() == "B"
    assert rig.record()["state"] == "fell back"
    trained(rig)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.full)])
def test_a_board_whose_plug_is_pulled_in_updates_and_rounds_boots_and_keeps_what_it_had(rig: Rig, kills: int) -> None:
    draw = random.Random(kills)
    rig.board.ready()
    made = rig.bundle(GOOD)
    rig.board.put(made, "/data/again.raucb")
    rig.board.do("sync")
    identity = rig.board.report(f"device status {DEV}")["id"]
    counted = rig.rounds()
    for number in range(kills):
        busy = rig.board.starts("fl-tiny device update /data/again.raucb --reboot")
        time.sleep(draw.uniform(1.0, 60.0))
        rig.again()
        busy.kill()
        busy.wait(30)
        rig.board.ready()
        found = rig.board.report(f"device status {DEV}")
        assert (found["id"], found["samples"]) == (identity, SAMPLES), number
        assert rig.rounds() >= counted, "a published round is never lost"
        counted = rig.rounds()
    trained(rig)
