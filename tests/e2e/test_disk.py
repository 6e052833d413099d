# SPDX-License-Identifier: Apache-2.0
"""Full disks, real ones: a small tmpfs under a gateway and under a device."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .fleet import Fleet, cli
from .test_rounds import ledger_is_sound

Mount = Callable[[Path, int], None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Put a tmpfs of so many MiB at a directory."""
    if os.geteuid() != 0:
        pytest.skip("NO FULL DISK: mounting a tmpfs needs root")
    mounted: list[Path] = []

    def mount_at(path: Path, mib: int) -> None:
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path], check=False)
        if done.returncode:
            pytest.skip("NO FULL DISK: this machine mounts no tmpfs")
        mounted.append(path)

    yield mount_at
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=False)


def fill(directory: Path, left_mib: float) -> Path:
    """Leave so many MiB free."""
    found = os.statvfs(directory)
    filler = directory / "filler"
    filler.write_bytes(bytes(found.f_bavail * found.f_frsize - int(left_mib * 2**20)))
    return filler


def test_a_gateway_without_room_takes_nothing_new_and_goes_on_by_itself(tmp_path: Path, mount: Mount) -> None:
    mount(tmp_path / "disk", 64)
    fleet = Fleet(tmp_path / "disk")
    fleet.root = tmp_path  # devices have room
    try:
        gateway = fleet.gateway("--rounds", 1, "--clients", 1, "--interval", 0)
        directory = fleet.device("d")
        (directory / "fl-tiny.toml").write_text("lan_timing = true\n")
        filler = fill(tmp_path / "disk", 8)
        assert "5.03" in cli(
            "device", "enroll", tmp_path / "late", "--code", cli("gateway", "pair", fleet.gw)["code"], code=69
        )
        run = fleet.run(directory, "--rounds", 1)
        run.event("round", state="joined")
        time.sleep(3)  # chunks are refused with 5.03 meanwhile: the device waits as it is told
        assert cli("gateway", "rounds", fleet.gw)[0]["received"] == 0
        filler.unlink()
        run.event("update", status="accepted")
        assert [event["event"] for event in run.seen].count("connected") == 1
        assert gateway.wait() == 0 and run.wait() == 0
        assert cli("gateway", "rounds", fleet.gw)[0]["received"] == 1
        ledger_is_sound(fleet.gw)
    finally:
        fleet.end()


def test_a_device_without_room_declines_keeps_its_model_and_comes_back(fleet: Fleet, mount: Mount) -> None:
    gateway = fleet.gateway("--rounds", 1, "--clients", 1, "--interval", 0)
    mount(fleet.root / "d", 16)
    directory = fleet.device("d")
    filler = fill(directory, 2)
    before = (directory / "model/current.tflite").read_bytes()
    run = fleet.run(directory, "--rounds", 1)
    run.event("round", state="declined")
    gateway.event("round", state="aborted")
    run.event("round", state="declined")  # the next one: heartbeats go on
    assert [event["event"] for event in run.seen].count("connected") == 1
    assert (directory / "model/current.tflite").read_bytes() == before
    assert not list(directory.rglob("*.part")) and run.process.poll() is None
    filler.unlink()
    run.event("update", status="accepted")
    assert gateway.wait() == 0 and run.wait() == 0
    assert (directory / "model/current.tflite").stat().st_size == len(before)
