# SPDX-License-Identifier: Apache-2.0
"""Releases of one image for tests: its slot with something changed, in bundles that a fleet's or another CA signed."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from fl_tiny.image.bundle import pack
from fl_tiny.image.disk import copy_out

from .guest import ROOT, run

BOARD = "fl-tiny-qemu-arm64"
FAST = ("-comp", "gzip", "-Xcompression-level", "1", "-b", "256K", "-noappend", "-quiet", "-no-progress")
PLAIN = ("-action", "uncompressed@pathname(boot/vmlinuz) || pathname(boot/initrd.img)")  # as image/hooks/compose has it


def missing() -> str:
    """Why no releases can be made here; empty when they can."""
    absent = [tool for tool in ("rauc", "openssl", "unsquashfs", "mksquashfs") if shutil.which(tool) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def slot_of(image: Path, folder: Path) -> Path:
    """The root in an image's slot A, unpacked."""
    slot = folder / "slot.squashfs"
    copy_out(image, "slot-a", slot)
    root = folder / "root"
    run("unsquashfs", "-q", "-n", "-d", root, slot, patience=600)
    slot.unlink()
    return root


def release(root: Path, number: str, folder: Path, change: Callable[[Path], None] = lambda root: None) -> Path:
    """The squashfs of a root as this release, with a change. It is made fast, and so larger than a real one."""
    made = folder / f"root-{number}.squashfs"
    copy = folder / f"root-{number}"
    run("cp", "-al", root, copy)
    try:
        stated = copy / "etc/fl-tiny-release"
        stated.unlink()  # else the root's own would change
        stated.write_text(f"COMPATIBLE={BOARD}\nRELEASE={number}\n")
        change(copy)
        run("mksquashfs", copy, made, *FAST, *PLAIN, patience=1200)
    finally:
        shutil.rmtree(copy)
    return made


def small(folder: Path) -> Path:
    """What no board should ever start."""
    noise, made = folder / "noise", folder / "noise.squashfs"
    if not made.exists():
        noise.write_bytes(random.Random(6).randbytes(1_000_000))
        run("mksquashfs", noise, made, "-quiet", "-no-progress", "-noD")
    return made


def bundle(slot: Path, number: str, keys: Path, made: Path) -> Path:
    """A slot as a signed bundle, by the builder."""
    pack(slot, BOARD, number, keys, made)
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
