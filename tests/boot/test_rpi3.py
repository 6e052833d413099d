# SPDX-License-Identifier: Apache-2.0
"""The image of a Raspberry Pi 3 boots in QEMU's raspi3b by U-Boot, GRUB and its kernel, to a running device service.

QEMU stands for the Pi's own firmware: it starts U-Boot and hands it the device tree, both off the image's FAT. It has
no network, so the card's data partition brings a device that was enrolled before.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from e2e.fleet import Fleet, cli

from fl_tiny.image import disk
from fl_tiny.image.slot import slot_of

from . import guest
from .guest import Guest, until

NAME = "rpi-3"
PATIENCE_S = 1500.0  # four emulated cores, whatever this machine has
RUNS = "Started fl-tiny-device.s"
_absent = guest.missing() or ("" if os.geteuid() == 0 else "needs root, to give files to the board's user")
pytestmark = pytest.mark.skipif(bool(_absent), reason=f"no image to boot here: {_absent}")


def enrolled(image: Path, folder: Path) -> None:
    """A device of a fleet on the image's data partition, as a board leaves it there."""
    fleet = Fleet(folder)
    try:
        fleet.gateway()
        device = fleet.device("board", samples=0)
    finally:
        fleet.end()
    slot = slot_of(image)
    assert slot is not None
    user = next(line.split(":") for line in slot.text("etc/passwd").split("\n") if line.startswith("fl-tiny:"))
    tree = folder / "data"
    shutil.copytree(device, tree / "fl-tiny/device")
    for path in (tree / "fl-tiny/device", *(tree / "fl-tiny/device").rglob("*")):
        os.chown(path, int(user[2]), int(user[3]))
    part = disk.read_table(image).parts["data"]
    options = ("-q", "-F", "-t", "ext4", "-L", "fl-data", "-d", tree, "-E", f"offset={part.start},root_owner=0:0")
    guest.run("mke2fs", *options, image, f"{part.size >> 10}k")


def without_watchdog(image: Path, folder: Path) -> None:
    """QEMU 7.2's BCM2835 resets as soon as its watchdog is armed, instead of 15 s after the last sign of life."""
    menu = folder / "grub.cfg"
    menu.write_text(guest.run("mcopy", "-n", "-i", f"{image}@@4M", "::grub/grub.cfg", "-"))
    text = menu.read_text()
    assert "rootfstype=squashfs" in text
    menu.write_text(text.replace("rootfstype=squashfs", "module_blacklist=bcm2835_wdt rootfstype=squashfs"))
    guest.run("mcopy", "-o", "-i", f"{image}@@4M", menu, "::grub/grub.cfg")


def test_a_raspberry_pi_3_boots_and_its_device_service_runs(tmp_path: Path) -> None:
    image = Path(guest.build(NAME, tmp_path / "out")["image"])
    found = cli("image", "verify", image, "--board", NAME, "--record", guest.KEPT / f"{NAME}.json")
    assert all(not each["missing"] for each in found), found
    enrolled(image, tmp_path)
    without_watchdog(image, tmp_path)
    board = Guest(image, guest.ssh_key(tmp_path), tmp_path / "serial.log", pi=guest.first_stages(image, tmp_path))
    try:
        board.waits_for("fl-tiny: slot A", PATIENCE_S)
        board.waits_for(RUNS, PATIENCE_S)
        figures = {"boot_to_service_s": round(board.elapsed(), 1)}
        until(lambda: board.elapsed() > figures["boot_to_service_s"] + 20, "while", 60, pause=5)
        board.runs()
    finally:
        board.end()
    said = board.said()
    assert "Machine model: Raspberry Pi 3 Model B" in said
    assert said.count("Welcome to GRUB") == 1, "it never started anew"
    after = said[said.index(RUNS) :]
    assert "Failed to start fl-tiny-device" not in said and "Stopped fl-tiny-device" not in after
    guest.keep(
        NAME, "raspi3b, 4 x cortex-a53, 1 GiB, no network, no watchdog, emulated", {"serial console": said}, figures
    )
