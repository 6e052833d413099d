# SPDX-License-Identifier: Apache-2.0
"""A gateway destroyed and restored from a backup that is older than what its devices hold."""

from __future__ import annotations

import contextlib
import shutil

from fl_tiny.device.store import DeviceStore

from .fleet import Fleet, cli
from .test_rounds import ledger_is_sound


def test_a_fleet_goes_on_from_a_backup_older_than_its_devices(fleet: Fleet) -> None:
    file, late = fleet.root / "gw.backup", fleet.root / "late"
    options = ("--clients", 2, "--interval", 3)
    gateway = fleet.gateway("--rounds", 3, *options)
    devices = [fleet.device(f"d{i}", seed=i) for i in range(2)]
    for directory in devices:
        (directory / "fl-tiny.toml").write_text("lan_timing = true\n")
    runs = [fleet.run(d) for d in devices]
    gateway.event("round", number=1, state="published")
    assert cli("gateway", "backup", fleet.gw, "--out", file)["head"] == 1, "beside the running gateway"
    cli("device", "enroll", late, "--code", cli("gateway", "pair", fleet.gw)["code"])
    for run in runs:
        run.event("round", number=3, state="published")
    assert gateway.wait() == 0
    shutil.rmtree(fleet.gw)

    restored = cli("gateway", "restore", fleet.gw, "--from", file)
    assert restored == {"dir": str(fleet.gw), "head": 1, "epoch": 1, "devices": 2}
    gateway = fleet.gateway("--rounds", 3, *options)
    stranger = fleet.run(late, "--once")
    assert stranger.wait() == 69 and "restored from a backup" in stranger.log[-1], "the backup does not know it"
    for run in runs:
        run.event("round", number=1, state="published")  # older by its number, newer by its epoch
        run.event("update", number=2, status="accepted")
        run.event("round", number=3, state="published")
    assert gateway.wait() == 0
    rounds = [row for row in cli("gateway", "rounds", fleet.gw) if row["state"] == "published"]
    assert [row["number"] for row in rounds] == [1, 2, 3]
    assert all(row["received"] == 2 for row in rounds[-2:])
    ledger_is_sound(fleet.gw)
    for run, directory in zip(runs, devices, strict=True):
        run.end()
        with contextlib.closing(DeviceStore.open(directory / "state.db")) as store:
            assert store.head().version == 3
