# SPDX-License-Identifier: Apache-2.0
"""Full disks, real ones: a small tmpfs under a gateway and under a device."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.shims import built

from .fleet import COMMAND, Fleet, cli
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


def fill_up(directory: Path) -> Path:
    """Leave nothing free, not a page."""
    filler = directory / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    return filler


def remount(directory: Path, how: str) -> None:
    """Make it read-only or writable; a child of a killed daemon may still hold a file for a moment."""
    until = time.monotonic() + 20
    while subprocess.run(["mount", "-o", f"remount,{how}", directory], check=False).returncode:
        assert time.monotonic() < until
        time.sleep(0.2)


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


READERS = (  # commands that write nothing
    ("gateway", "status"), ("gateway", "devices"), ("gateway", "rounds"), ("gateway", "bundle", "list"),
    ("device", "status"), ("samples", "stats"),
)  # fmt: skip
SAID = {
    "full": ("is full", "delete logs, caches or backups there, of DIR update/*.part at most; never state.db"),
    "read-only": ("is read-only", "mount it writable"),
}


def answers(gateway: Path, device: Path, data: Path) -> list[Any]:
    """What every reading command says, but for what counts seconds."""
    found: list[Any] = [cli(*words, gateway if words[0] == "gateway" else device) for words in READERS]
    for row in found[1]:
        row.pop("last_seen_s")
    return [*found, cli("predict", device, "--data", data)]


def is_refused(words: tuple[str, str], *args: object) -> None:
    """The command ends with 69 and says which disk, what is wrong with it, and what may be done."""
    for how in words:
        assert how in cli(*args, code=69), args


@pytest.mark.parametrize("state", ["full", "read-only"])
@pytest.mark.parametrize("killed", [False, True], ids=["clean", "killed"])
def test_reading_commands_work_and_others_say_what_is_wrong(
    tmp_path: Path, mount: Mount, state: str, killed: bool
) -> None:
    disk = tmp_path / "disk"
    mount(disk, 64)
    fleet = Fleet(disk)
    fleet.root = tmp_path  # archives of samples lie elsewhere
    try:
        gateway = fleet.gateway("--rounds", 1, "--clients", 1, "--interval", 0)
        fleet.root = disk
        code = cli("gateway", "pair", fleet.gw)["code"]
        directory = disk / "d"
        cli("device", "enroll", directory, "--code", code)
        fleet.root = tmp_path
        data, more = fleet.data("d", 60, 0), fleet.data("more", 60, 1)
        cli("samples", "add", directory, "--data", data)
        run = fleet.run(directory)
        run.event("update", status="accepted")
        gateway.wait()
        if killed:
            run.process.kill()
        else:
            run.process.terminate()
        run.process.wait(10)
        if killed:  # a log with something in it, and no index of it
            assert (directory / "state.db-wal").stat().st_size
            (directory / "state.db-shm").unlink()
        before = answers(fleet.gw, directory, data) if not killed else None
        if state == "full":
            filler = fill_up(disk)
        else:
            remount(disk, "ro")
        full = answers(fleet.gw, directory, data)
        assert before in (None, full)
        words = (f"the disk at {disk} {SAID[state][0]}", SAID[state][1])
        is_refused(words, "samples", "add", directory, "--data", more)
        if (state, killed) != ("full", True):  # its old log has some room: the daemon starts, and declines rounds
            is_refused(words, "device", "run", directory)
        is_refused(words, "gateway", "pair", fleet.gw)
        is_refused(words, "gateway", "run", fleet.gw, "--bind", "127.0.0.1:0")
        is_refused(words, "gateway", "export", fleet.gw, "--out", disk / "out.tflite")
        if state == "full":
            filler.unlink()
        else:
            remount(disk, "rw")
        assert answers(fleet.gw, directory, data) == full
        assert cli("samples", "add", directory, "--data", more)["samples"] == 120
        ledger_is_sound(fleet.gw)
    finally:
        fleet.end()


def failing(disk: Path, shim: Path, **which: int) -> dict[str, str]:
    """An environment in which the disk below ``disk`` fails; DISK_READ, DISK_WRITE: the errno."""
    return {**os.environ, "LD_PRELOAD": str(shim), "DISK": str(disk), **{k: str(v) for k, v in which.items()}}


def test_a_failing_disk_is_said_to_fail_and_nothing_is_lost(fleet: Fleet, tmp_path: Path) -> None:
    shim = built("disk", tmp_path)
    fleet.gateway("--clients", 1)
    directory = fleet.device("d")
    data = fleet.data("more", 60, 1)
    cases: list[tuple[int, list[object]]] = [
        (errno.EIO, ["samples", "add", directory, "--data", data]),
        (errno.EIO, ["device", "run", directory]),
        (errno.EIO, ["gateway", "pair", fleet.gw]),
        (errno.ENOSPC, ["samples", "add", directory, "--data", data]),
        (errno.ENOSPC, ["gateway", "pair", fleet.gw]),
    ]
    for number, words in cases:
        done = command(words, failing(fleet.root, shim, DISK_WRITE=number))
        assert done.returncode == 69, (words, done.stderr)
        point = next(path for path in (fleet.root, *fleet.root.parents) if path.is_mount())
        assert f"the disk at {point} {'fails' if number == errno.EIO else 'is full'}" in done.stderr, words
        assert "Traceback" not in done.stderr and not done.stdout
    for words in (["device", "status", directory], ["samples", "stats", directory], ["gateway", "status", fleet.gw]):
        done = command(words, failing(fleet.root, shim, DISK_READ=errno.EIO))
        assert done.returncode == 69 and "fails" in done.stderr, (words, done.stderr)
    assert cli("device", "status", directory)["samples"] == 60
    assert cli("samples", "add", directory, "--data", data)["samples"] == 120
    ledger_is_sound(fleet.gw)


def command(words: list[object], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], check=False, capture_output=True, text=True, timeout=60, env=env
    )
