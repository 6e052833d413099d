# SPDX-License-Identifier: Apache-2.0
"""The units under a real systemd: what they may do, when they start again, and a round that they complete alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from e2e.fleet import MODEL

from fl_tiny.learn.tflite import read_model

from . import debian
from .debian import Machine, until

pytestmark = pytest.mark.skipif(bool(debian.missing()), reason=f"no Debian root here: {debian.missing()}")

GATEWAY, DEVICE = "fl-tiny-gateway.service", "fl-tiny-device.service"
GW, DEV = "/var/lib/fl-tiny/gateway", "/var/lib/fl-tiny/device"
SUITES = ["bookworm", pytest.param("trixie", marks=pytest.mark.full)]


@pytest.fixture(scope="module", params=SUITES)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    debian.build_debs()
    root = debian.make_root(tmp_path_factory.mktemp(request.param) / "root", request.param)
    debian.install(root, "fl-tiny", "fl-tiny-gateway")
    shutil.copy(MODEL, root / "model.tflite")
    (root / "model.tflite").chmod(0o600)  # as in a home directory: the service's user cannot read it
    made = Machine(root)
    yield made
    made.end()
    shutil.rmtree(root)


def test_the_units_are_without_fault_and_confined(machine: Machine) -> None:
    units = [DEVICE, GATEWAY, "fl-tiny-device-once.service", "fl-tiny-device.timer"]
    assert machine.run("systemd-analyze", "verify", "--man=no", *units) == ""
    for unit in units[:3]:
        machine.run("systemd-analyze", "security", "--threshold=20", unit)  # exit 1 above 2.0


def test_before_enrolment_the_services_are_enabled_and_quiet(machine: Machine) -> None:
    for unit in (DEVICE, GATEWAY, "federated-learning-client.service"):
        assert machine.run("systemctl", "is-enabled", unit, code=None).strip() in ("enabled", "alias")
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "fl-tiny-*") == ""
    said = machine.run("systemctl", "status", DEVICE, code=3)
    assert "state.db was not met" in said or "state.db" in said.split("Condition")[1]


def test_the_units_complete_a_round_and_hold_no_privilege(machine: Machine) -> None:
    machine.run("fl-tiny", "gateway", "init", GW, "--model", "/model.tflite")
    settings = 'bind = "127.0.0.1:0"\nclients = 1\ninterval = 1.0\n'
    (machine.root / GW[1:] / "fl-tiny.toml").write_text(settings)
    machine.run("systemctl", "start", GATEWAY)  # returns when it is ready
    uri = machine.report("gateway", "status", GW)["uri"]
    (machine.root / GW[1:] / "fl-tiny.toml").write_text(settings.replace("127.0.0.1:0", uri.split("//")[1]))
    assert f"listening at {uri}" in machine.show(GATEWAY)["StatusText"]
    machine.run("fl-tiny", "device", "enroll", DEV, "--code", machine.report("gateway", "pair", GW)["code"])
    samples(machine.root / "d.npz")
    machine.run("fl-tiny", "samples", "add", DEV, "--data", "/d.npz")
    machine.run("systemctl", "start", DEVICE)
    try:
        until(lambda: machine.report("device", "status", DEV)["rounds"] > 0, "round")
    except AssertionError:
        raise AssertionError(machine.journal(DEVICE) + machine.journal(GATEWAY)) from None
    first = machine.report("gateway", "rounds", GW)[0]
    assert (first["state"], first["received"]) == ("published", 1)
    for role, directory in (("device", DEV), ("gateway", GW)):
        assert all(row["state"] != "fail" for row in machine.report(role, "doctor", directory))
    for unit in (DEVICE, GATEWAY):
        status = machine.run("cat", f"/proc/{machine.pid(unit)}/status")
        facts = dict(line.split(":\t", 1) for line in status.split("\n") if ":\t" in line)
        assert facts["CapEff"] == facts["CapBnd"] == "0" * 16
        assert facts["NoNewPrivs"] == "1" and facts["Seccomp"] == "2" and not facts["Uid"].startswith("0\t")


@pytest.mark.parametrize("unit", [DEVICE, GATEWAY])
def test_a_killed_daemon_is_started_again_and_goes_on(machine: Machine, unit: str) -> None:
    before, rounds = machine.pid(unit), machine.report("device", "status", DEV)["rounds"]
    assert before
    machine.signal("KILL", before)
    until(lambda: machine.pid(unit) not in (0, before), "new process")
    assert int(machine.show(unit)["NRestarts"]) == 1
    until(lambda: machine.report("device", "status", DEV)["rounds"] > rounds, "another round", 90)


def test_a_daemon_whose_loop_hangs_is_started_again(machine: Machine) -> None:
    drop_in(machine, DEVICE, "WatchdogSec=6\nRestartSec=1")
    machine.run("systemctl", "restart", DEVICE)
    before = until(lambda: machine.pid(DEVICE), "process")
    time.sleep(8)
    assert machine.pid(DEVICE) == before, "one that turns is left alone"
    machine.signal("STOP", before)
    until(lambda: machine.pid(DEVICE) not in (0, before), "new process")
    assert "Watchdog timeout" in machine.journal(DEVICE)


def test_a_wrong_setting_is_not_tried_again(machine: Machine) -> None:
    settings = machine.root / DEV[1:] / "fl-tiny.toml"
    settings.write_text("nonsense = 1\n")
    machine.run("systemctl", "restart", DEVICE, code=1)
    time.sleep(2)
    found = machine.show(DEVICE)
    assert (found["ActiveState"], found["ExecMainStatus"], found["NRestarts"]) == ("failed", "78", "0")
    assert "unknown key nonsense" in machine.journal(DEVICE)
    settings.unlink()


def test_by_the_timer_no_process_stays_between_two_visits(machine: Machine) -> None:
    rounds = machine.report("device", "status", DEV)["rounds"]
    machine.run("systemctl", "disable", "--now", DEVICE)
    drop_in(
        machine, "fl-tiny-device.timer", "OnActiveSec=\nOnActiveSec=1\nRandomizedDelaySec=0\nAccuracySec=1s", "Timer"
    )
    machine.run("systemctl", "enable", "--now", "fl-tiny-device.timer")
    once = "fl-tiny-device-once.service"
    until(lambda: machine.show(once)["ExecMainExitTimestampMonotonic"] != "0", "visit")
    assert machine.show(once)["Result"] == "success", machine.journal(once)
    assert machine.processes("device run") == []
    assert machine.report("device", "status", DEV)["rounds"] > rounds
    assert machine.show("fl-tiny-device.timer")["ActiveState"] == "active", "it comes again"


def drop_in(machine: Machine, unit: str, text: str, section: str = "Service") -> None:
    folder = machine.root / "etc/systemd/system" / f"{unit}.d"
    folder.mkdir()
    (folder / "test.conf").write_text(f"[{section}]\n{text}\n")
    machine.run("systemctl", "daemon-reload")


def samples(path: Path, count: int = 60) -> None:
    """What can be learnt: noise whose pattern depends on the class."""
    shape = read_model(MODEL.read_bytes()).input.shape[1:]
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, count)
    x = (rng.normal(size=(4, *shape)) * 40)[y] + rng.normal(size=(count, *shape)) * 20
    np.savez(path, x=np.clip(x, -128, 127).astype(np.int8), y=y)
