# SPDX-License-Identifier: Apache-2.0
"""A release from a gateway to a board by real processes: fetched over the session, through restarts, never mixed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from device import raucs

from fl_tiny.device.machine import Machine, Record

from .fleet import PATIENCE_S, Fleet, cli, stop

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in raucs.TOOLS), reason=f"makes bundles with {raucs.TOOLS}"
)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path)
    yield found
    found.end()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return raucs.make_keys(tmp_path / "keys")


@pytest.fixture
def root(tmp_path: Path, keys: Path) -> Path:
    """A board's system, release 2."""
    return raucs.make_board(tmp_path, keys).root


def until(path: Path) -> Path:
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)
    return path


def test_a_bundle_reaches_a_board_through_restarts_of_both_and_its_refusal_comes_back(
    fleet: Fleet, root: Path, keys: Path, tmp_path: Path
) -> None:
    gateway, dev = fleet.gateway(), fleet.device("dev", samples=0)
    file = raucs.make_bundle(tmp_path, keys, "3", form="verity")
    assert cli("gateway", "bundle", "add", fleet.gw, file)["release"] == "3"
    name = next((fleet.gw / "bundle").iterdir()).stem
    device = fleet.run(dev, "--root", root)
    device.event("release", state="fetching", release="3")
    part = until(dev / f"update/{name}.part")
    while part.stat().st_size == 0:
        time.sleep(0.01)
    device.process.kill()
    device.process.wait(10)
    assert stop(gateway) == 0
    held = part.read_bytes()
    assert 0 < len(held) < file.stat().st_size
    assert file.read_bytes().startswith(held)
    fleet.gateway()
    device = fleet.run(dev, "--root", root)
    device.event("release", state="fetched")
    fetched = dev / f"update/{name}.raucb"
    assert fetched.read_bytes() == file.read_bytes()
    assert (dev / "update/reached").read_text() == (root / "proc/sys/kernel/random/boot_id").read_text()
    fetched.unlink()  # as root takes it, and does not like it
    Machine(root).keep(Record(name, "3", "refused", False, 6, "signature verification failed"))
    assert stop(device) == 0
    device = fleet.run(dev, "--root", root)
    device.event("connected")
    end = time.monotonic() + PATIENCE_S
    while not (row := cli("gateway", "bundle", "list", fleet.gw)[0])["refused"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert row["why"] == "signature verification failed"
    assert stop(device) == 0
    assert not [event for event in device.seen if event["event"] == "release"], "it is not fetched again"


def test_a_bundle_that_rots_on_the_way_is_dropped_and_comes_again(
    fleet: Fleet, root: Path, keys: Path, tmp_path: Path
) -> None:
    fleet.gateway()
    dev = fleet.device("dev", samples=0)
    file = raucs.make_bundle(tmp_path, keys, "3", form="verity")
    cli("gateway", "bundle", "add", fleet.gw, file)
    name = next((fleet.gw / "bundle").iterdir()).stem
    data = bytearray(file.read_bytes()[: 2 * 32_768])
    data[5] ^= 1
    (dev / "update").mkdir()
    (dev / f"update/{name}.part").write_bytes(data)
    (dev / "update/0123456789abcdef.part").write_bytes(b"of an earlier release")
    device = fleet.run(dev, "--root", root)
    device.event("release", state="fetched")
    assert (dev / f"update/{name}.raucb").read_bytes() == file.read_bytes()
    assert sum("release damaged on the way" in line for line in device.log) == 1
    assert sorted(path.name for path in (dev / "update").iterdir()) == [f"{name}.raucb", "reached"]


def test_a_system_without_slots_is_offered_nothing_and_says_nothing(fleet: Fleet, keys: Path, tmp_path: Path) -> None:
    fleet.gateway()
    dev = fleet.device("dev", samples=0)
    cli("gateway", "bundle", "add", fleet.gw, raucs.make_bundle(tmp_path, keys, "3", form="verity"))
    device = fleet.run(dev, "--root", tmp_path / "nothing", "--once")
    assert device.wait() == 0
    assert cli("gateway", "bundle", "list", fleet.gw)[0]["boards"] == 0
    assert not (dev / "update").exists()


def test_a_board_that_is_always_at_work_gets_its_release_all_the_same(
    fleet: Fleet, root: Path, keys: Path, tmp_path: Path
) -> None:
    """A slow board's child is never idle between rounds that follow one another closely."""
    (fleet.gw / "fl-tiny.toml").write_text("clients = 1\ninterval = 0.05\nepochs = 40\n")
    fleet.gateway()
    dev = fleet.device("dev", samples=400)
    cli("gateway", "bundle", "add", fleet.gw, raucs.make_bundle(tmp_path, keys, "3", form="verity"))
    device = fleet.run(dev, "--root", root)
    device.event("release", state="fetched")
    device.event("update", status="accepted")
