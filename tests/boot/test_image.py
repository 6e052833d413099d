# SPDX-License-Identifier: Apache-2.0
"""An image of our own builder boots in QEMU, enrols by the code on its card, learns from its spool, is in a round."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.fleet import Fleet, cli

from fl_tiny.image import evidence

from . import guest
from .guest import Guest, until

DEV = "/var/lib/fl-tiny/device"
SPOOL = "/var/lib/fl-tiny/spool"
SAMPLES = 60
NAME = "qemu-arm64"
MIB = 1 << 20
pytestmark = pytest.mark.skipif(bool(guest.missing()), reason=f"no image to boot here: {guest.missing()}")


class Board:
    """One image, provisioned as a person does it, booted beside a gateway; and what was measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = guest.build(NAME, folder / "out")
        self.fleet = Fleet(folder)
        (self.fleet.gw / "fl-tiny.toml").write_text("clients = 1\ninterval = 5.0\n")
        self.fleet.gateway()
        self.code = cli("gateway", "pair", self.fleet.gw)["code"]
        key = guest.ssh_key(folder)
        card = folder / "card.toml"
        card.write_text(
            f'gateway = "{guest.HOST}:{self.fleet.port}"\npairing_code = "{self.code}"\n'
            f'[board]\nname = "kitchen"\n[source]\nkind = "spool"\n'
            f'[ssh]\nauthorized_keys = ["{key.with_suffix(".pub").read_text().strip()}"]\n'
        )
        self.disk = guest.copy(Path(self.made["image"]), folder / "disk.img", 1024)
        cli("image", "provision", self.disk, "--config", card)
        self.guest = Guest(self.disk, key, folder / "serial.log")
        self.figures: dict[str, Any] = {}

    def state(self, unit: str) -> str:
        return self.guest.do(f"systemctl is-active {unit}", code=None).strip()

    def end(self) -> None:
        self.guest.end()
        self.fleet.end()
        if "boot_to_round_s" in self.figures:
            said = {"serial console": self.guest.said(), "gateway": "".join(self.fleet.daemons[0].log)}
            guest.keep(NAME, "virt, 2 x cortex-a57, 512 MiB", said, self.figures)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    made = Board(tmp_path_factory.mktemp("boot"))
    yield made
    made.end()


def test_it_is_what_its_board_file_says_and_small(board: Board) -> None:
    found = cli("image", "verify", board.made["image"], "--board", NAME, "--record", guest.KEPT / f"{NAME}.json")
    assert all(not each["missing"] for each in found), found
    assert sum(evidence.read(guest.KEPT / f"{NAME}.json").sizes.values()) <= 210e6, "the root, its kernel included"
    board.figures["compressed_mib"] = round(Path(board.made["compressed"]).stat().st_size / MIB, 1)
    assert board.figures["compressed_mib"] <= 80


def test_it_boots_and_enrols_by_the_code_on_its_card_which_is_erased(board: Board) -> None:
    board.figures["boot_to_ssh_s"] = round(board.guest.ready(), 1)
    until(lambda: cli("gateway", "devices", board.fleet.gw), "device at the gateway", 600, pause=3)
    card = until(
        lambda: board.code not in (found := board.guest.fat("fl-tiny.toml")) and found, "card without its code"
    )
    assert "kitchen" in card and guest.HOST in card, "the rest of it stays"
    assert board.guest.do("cat /proc/sys/kernel/hostname").strip() == "kitchen"
    modes = board.guest.do(f"stat -c '%a %U' {DEV}/secret {DEV}/secret/device.key {DEV}/secret/psk").split("\n")
    assert modes[:3] == ["700 fl-tiny", "600 fl-tiny", "600 fl-tiny"]
    until(lambda: board.state("fl-tiny-device") == "active", "running device service")
    assert int(board.guest.do("df --output=size -m /data | tail -1")) > 500, "the data partition has grown"


def test_nobody_logs_in_without_the_key_and_the_root_is_read_only(board: Board) -> None:
    assert not re.search(r"^[^:]+:\$", board.guest.do("cat /etc/shadow"), re.MULTILINE)
    assert "squashfs" in board.guest.do("findmnt -no FSTYPE /")
    effective = board.guest.do("sshd -T | grep -i -E '^(passwordauthentication|permitrootlogin)'")
    assert "passwordauthentication no" in effective and "permitrootlogin yes" not in effective
    assert board.guest.do("systemctl --failed --no-legend --plain").strip() == ""


def test_its_update_from_spooled_samples_is_in_a_published_round(board: Board) -> None:
    board.figures["idle_rss_mib"] = resident(board)[0]
    until(lambda: board.state("fl-tiny-source") == "active", "running source service")
    board.guest.put(board.fleet.data("board", SAMPLES, 0), f"{SPOOL}/.samples.npz")
    board.guest.do(f"chown fl-tiny: {SPOOL}/.samples.npz && mv {SPOOL}/.samples.npz {SPOOL}/samples.npz")
    rss = pss = 0.0

    def published() -> bool:
        nonlocal rss, pss
        rss, pss = (max(pair) for pair in zip((rss, pss), resident(board), strict=True))
        return bool(cli("gateway", "devices", board.fleet.gw)[0]["last_round"])

    until(published, "published round with this board's update in it", 900, pause=2)
    assert board.guest.report(f"device status {DEV}")["samples"] == SAMPLES
    assert board.guest.do(f"ls {SPOOL}").strip() in ("", "rejected"), "what was learnt is gone"
    board.figures["training_rss_mib"], board.figures["training_pss_mib"] = rss, pss
    board.figures["boot_to_round_s"] = round(board.guest.elapsed(), 1)


def resident(board: Board) -> tuple[float, float]:
    """MiB resident of the device's unit, its training child included: RSS, which counts what two processes share
    twice, and PSS, which counts it once. Source: Linux, Documentation/filesystems/proc.rst, smaps_rollup."""
    lines = board.guest.do(
        "cat /sys/fs/cgroup/system.slice/fl-tiny-device.service/cgroup.procs |"
        " while read -r pid; do cat /proc/$pid/smaps_rollup; done; true"
    )
    rss, pss = (sum(map(int, re.findall(rf"^{which}:\s+(\d+) kB", lines, re.MULTILINE))) for which in ("Rss", "Pss"))
    return round(rss / 1024, 1), round(pss / 1024, 1)
