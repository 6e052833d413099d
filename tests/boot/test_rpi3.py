# SPDX-License-Identifier: Apache-2.0
"""The image of a Raspberry Pi 3 boots in QEMU's raspi3b by U-Boot, GRUB and its kernel, to a running device service.

QEMU stands for the Pi's own firmware: it starts U-Boot and hands it the device tree, both off the image's FAT.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.fleet import Fleet, cli

from . import guest
from .guest import Guest, until

NAME = "rpi-3"
PATIENCE_S = 1500.0  # four emulated cores, whatever this machine has
pytestmark = pytest.mark.skipif(bool(guest.missing()), reason=f"no image to boot here: {guest.missing()}")


def test_a_raspberry_pi_3_boots_and_its_device_service_runs(tmp_path: Path) -> None:
    image = Path(guest.build(NAME, tmp_path / "out")["image"])
    found = cli("image", "verify", image, "--board", NAME, "--record", guest.KEPT / f"{NAME}.json")
    assert all(not each["missing"] for each in found), found
    fleet = Fleet(tmp_path)
    fleet.gateway()
    code = cli("gateway", "pair", fleet.gw)["code"]
    key = guest.ssh_key(tmp_path)
    public = key.with_suffix(".pub").read_text().strip()
    card = tmp_path / "card.toml"
    card.write_text(
        f'gateway = "{guest.HOST}:{fleet.port}"\npairing_code = "{code}"\n[ssh]\nauthorized_keys = ["{public}"]\n'
    )
    cli("image", "provision", image, "--config", card)
    board = Guest(image, key, tmp_path / "serial.log", pi=guest.first_stages(image, tmp_path))
    try:
        figures = {"boot_to_ssh_s": round(board.ready(PATIENCE_S), 1)}
        active = "systemctl is-active fl-tiny-device"
        until(lambda: board.do(active, code=None).strip() == "active", "running device service", PATIENCE_S, pause=5)
        figures["boot_to_service_s"] = round(board.elapsed(), 1)
        assert board.do("tr -d '\\0' < /proc/device-tree/model").startswith("Raspberry Pi 3 Model B")
        assert len(cli("gateway", "devices", fleet.gw)) == 1
        board.waits_for("Started fl-tiny-device.s", 60)
    finally:
        board.end()
        fleet.end()
    guest.keep(NAME, "raspi3b, emulated", {"serial console": board.said()}, figures)
