# SPDX-License-Identifier: Apache-2.0
"""Power cuts: a Linux of its own over an ext4 disk, ended by SIGKILL, so that its page cache is gone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fl_tiny.device.store import DeviceStore, HeldHead
from fl_tiny.gateway import setup

from . import guest
from .light import MODELS, SMALL

ROOT = Path(__file__).parents[2]
LINUX = shutil.which("linux.uml")
BOOT_S = 60.0
pytestmark = pytest.mark.skipif(
    LINUX is None or shutil.which("mkfs.ext4") is None,
    reason="NO POWER CUTS: user-mode-linux or e2fsprogs is not installed (apt install user-mode-linux e2fsprogs)",
)


class NotStarted(Exception):
    """The guest said nothing of its state."""


def tree_of(role: str, folder: Path) -> Path:
    """A fresh gateway or device."""
    tree = folder / "tree"
    if role == "gateway":
        setup.initialise(tree, MODELS / f"{SMALL}.tflite", None, setup.Wanted(2))
        with closing(sqlite3.connect(tree / "state.db")) as db:
            rows = [(bytes([n]) * 16, bytes([n]) * 32, b"psk", "active") for n in range(guest.DEVICES)]
            db.executemany("INSERT INTO device(did, pk, psk, state) VALUES(?,?,?,?)", rows)
            db.commit()
    else:
        tree.mkdir()
        store = DeviceStore.create(tree / "state.db")
        store.put_head(HeldHead(0, b"s", b"b"))
        store.put(enrolled=1)
        store.close()
        (tree / "current.tflite").write_bytes(bytes(8) + hashlib.shake_256(bytes(8)).digest(guest.CODES))
    return tree


def disk(role: str, folder: Path) -> Path:
    """An ext4 image with a fresh gateway or device on it."""
    tree, image = tree_of(role, folder), folder / "disk"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", tree, image], check=True)
    return image


class Machine:
    """User-mode Linux on this machine's own files, read-only, and one disk of its own at /mnt."""

    def __init__(self, image: Path, role: str, synchronous: str) -> None:
        start = image.with_name("init")
        command = f"{sys.executable} -m tests.link.guest {role} /mnt {synchronous}"
        start.write_text(
            "#!/bin/sh\nmount -t proc proc /proc\nmount -t tmpfs tmpfs /tmp\nmount -t ext4 /dev/ubda /mnt\n"
            f"cd {ROOT}\nPYTHONDONTWRITEBYTECODE=1 PYTHONPATH={ROOT} exec {command} 2>&1\n"
        )
        start.chmod(0o755)
        words = [LINUX, "mem=192M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={start}"]
        words += [f"ubd0={image}", "con=null", "con0=null,fd:1", "ssl=null", "quiet"]
        self._process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(image.parent)},
        )
        self._kept = b""

    def lines(self, until: float) -> Iterator[str]:
        """What the guest says until the machine's clock says ``until``."""
        assert self._process.stdout
        pipe = self._process.stdout.fileno()
        while (left := until - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                return
            data = os.read(pipe, 65536)
            if not data:
                return
            *whole, self._kept = (self._kept + data).split(b"\n")
            yield from (line.decode(errors="replace").strip() for line in whole)

    def cut(self) -> None:
        """Cut the power: the whole machine is gone, with what it had not written to its disk."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self.cut()
        assert self._process.stdout
        self._process.stdout.close()


def boot(image: Path, role: str, synchronous: str, work_s: float) -> tuple[dict[str, int], dict[str, int]]:
    """One power cycle: (what the guest found at its start, what it had acknowledged when the power was cut)."""
    machine = Machine(image, role, synchronous)
    said: list[str] = []
    try:
        for line in machine.lines(time.monotonic() + BOOT_S):
            said.append(line)
            if line.startswith("state "):
                break
        if not said or not said[-1].startswith("state "):
            raise NotStarted(f"the guest did not start: {said[-20:]}")
        state = json.loads(said[-1][6:])
        assert state.pop("faults") == []
        said = list(machine.lines(time.monotonic() + work_s))
        machine.cut()
        said += machine.lines(time.monotonic() + 1)  # what was on its way when the power went
        acks: dict[str, int] = {}
        for _, what, number in (line.split() for line in said if line.startswith("ack ") and len(line.split()) == 3):
            acks[what] = max(acks.get(what, 0), int(number))
        return state, acks
    finally:
        machine.close()


def tried(image: Path, role: str, synchronous: str, work_s: float) -> tuple[dict[str, int], dict[str, int]]:
    """As ``boot``; a guest that does not come up at all is started once more."""
    try:
        return boot(image, role, synchronous, work_s)
    except NotStarted as fault:
        print(f"once more: {fault}")
    return boot(image, role, synchronous, work_s)


def cycles(folder: Path, role: str, cuts: int, synchronous: str = "FULL") -> list[str]:
    """Cut the power ``cuts`` times; each acknowledged thing that is then missing, as text."""
    image, rng, lost = disk(role, folder), random.Random(cuts), []
    known: dict[str, int] = {}
    for cut in range(cuts + 1):
        found, acks = tried(image, role, synchronous, rng.uniform(0.3, 1.5) if cut < cuts else 0.0)
        lost += [
            f"cut {cut}: {what} {found[what]} of {number}" for what, number in known.items() if found[what] < number
        ]
        assert cut == cuts or acks, "the guest wrote something before each cut"
        known = acks
    print(f"Shows 3: {role} {synchronous}: {cuts} cuts, {len(lost)} losses {lost[:2]}")
    return lost


@pytest.mark.parametrize("role", ["gateway", "device"])
def test_nothing_acknowledged_is_lost_by_power_cuts(tmp_path: Path, role: str) -> None:
    assert cycles(tmp_path, role, 3) == []


@pytest.mark.full
@pytest.mark.parametrize("role", ["gateway", "device"])
def test_nothing_acknowledged_is_lost_by_fifty_power_cuts(tmp_path: Path, role: str) -> None:
    assert cycles(tmp_path, role, 50) == []


@pytest.mark.parametrize("role", ["gateway", "device"])
def test_without_full_synchronisation_a_power_cut_loses_what_was_acknowledged(tmp_path: Path, role: str) -> None:
    assert cycles(tmp_path, role, 2, "NORMAL") != []
