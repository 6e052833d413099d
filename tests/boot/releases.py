# SPDX-License-Identifier: Apache-2.0
"""Releases of one image for tests: its slot with something changed, in bundles that a fleet's or another CA signed."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from fl_tiny.image.bundle import MANIFEST

from .guest import ROOT, run

SECTOR = 512
BOARD = "fl-tiny-qemu-arm64"


def missing() -> str:
    """Why no releases can be made here; empty when they can."""
    absent = [tool for tool in ("rauc", "openssl", "unsquashfs", "mksquashfs") if shutil.which(tool) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def slot_of(image: Path, folder: Path) -> Path:
    """The root in an image's slot A, unpacked."""
    with image.open("rb") as disk:
        table = disk.read(SECTOR)
        first, count = struct.unpack_from("<II", table, 446 + 16 + 8)
        disk.seek(first * SECTOR)
        slot = folder / "slot.squashfs"
        with slot.open("wb") as file:
            for _ in range(0, count, 2048):
                file.write(disk.read(2048 * SECTOR))
    root = folder / "root"
    run("unsquashfs", "-q", "-n", "-d", root, slot, patience=600)
    slot.unlink()
    return root


def release(root: Path, number: str, folder: Path, change: Callable[[Path], None] = lambda root: None) -> Path:
    """A folder to make a bundle of: the root as this release, with a change that is taken back afterwards."""
    content = folder / f"content-{number}"
    content.mkdir()
    stated = root / "etc/fl-tiny-release"
    stated.write_text(f"COMPATIBLE={BOARD}\nRELEASE={number}\n")
    change(root)
    squash = ["-comp", "xz", "-b", "256K", "-noappend", "-quiet", "-no-progress"]
    run("mksquashfs", root, content / "root.squashfs", *squash, patience=1200)
    return describe(content, number)


def small(number: str, folder: Path) -> Path:
    """A folder to make a bundle of that no board should ever start."""
    content = folder / f"content-{number}"
    content.mkdir()
    (content / "noise").write_bytes(random.Random(6).randbytes(1_000_000))
    run("mksquashfs", content / "noise", content / "root.squashfs", "-quiet", "-no-progress", "-noD")
    (content / "noise").unlink()
    return describe(content, number)


def describe(content: Path, number: str) -> Path:
    """The manifest beside a root, and what our pre-install handler asks for."""
    (content / "manifest.raucm").write_text(MANIFEST.format(compatible=BOARD, release=number))
    (content / "fl-tiny-release").write_text(f"COMPATIBLE={BOARD}\nRELEASE={number}\n")
    return content


def bundle(content: Path, keys: Path, name: str = "") -> Path:
    """The folder as a signed bundle."""
    made = content.parent / f"{name or content.name}.raucb"
    signer = ["--cert", keys / "update-signer.pem", "--key", keys / "update-signer.key"]
    run("rauc", "bundle", *signer, "--keyring", keys / "update-ca.pem", content, made)
    return made


def flipped(made: Path) -> Path:
    """A copy of a bundle with one byte of its payload changed."""
    found = made.with_name(f"flipped-{made.name}")
    shutil.copy(made, found)
    with found.open("r+b") as file:
        file.seek(found.stat().st_size // 3)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return found


def numb(root: Path) -> None:
    """A release whose device never starts, and that is left soon."""
    units = root / "etc/systemd/system"
    (units / "fl-tiny-device.service").symlink_to("/dev/null")
    quick = units / "fl-tiny-confirm.service.d"
    quick.mkdir()
    command = "/usr/bin/fl-tiny device confirm /var/lib/fl-tiny/device --within 60s"
    (quick / "quick.conf").write_text(f"[Service]\nExecStart=\nExecStart={command}\n")


def kill_none(_root: Path) -> None:
    """A release as it is."""


def keys_of(folder: Path) -> Path:
    """A CA and a signer; those that are there already stay, and so an image that was built with them is taken again."""
    if not folder.exists():
        subprocess.run([ROOT / "scripts/update-keys", folder], check=True, timeout=60, capture_output=True)
    return folder
