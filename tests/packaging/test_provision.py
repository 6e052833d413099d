# SPDX-License-Identifier: Apache-2.0
"""Provisioning and enrolment as units of a real systemd: a card in /boot, networkd, a gateway in the same machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from e2e.fleet import MODEL

from fl_tiny.learn.tflite import read_model

from . import debian
from .debian import Machine, until

pytestmark = pytest.mark.skipif(bool(debian.missing()), reason=f"no Debian root here: {debian.missing()}")

PROVISION, ENROLL, DEVICE = "fl-tiny-provision.service", "fl-tiny-enroll.service", "fl-tiny-device.service"
SOURCE = "fl-tiny-source.service"
GW, DEV, PENDING = "/var/lib/fl-tiny/gateway", "/var/lib/fl-tiny/device", "/var/lib/fl-tiny/device/secret/pairing_code"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    debian.build_debs()
    root = debian.make_root(tmp_path_factory.mktemp("provision") / "root", "bookworm")
    debian.install(root, "fl-tiny", "fl-tiny-gateway")
    shutil.copy(MODEL, root / "model.tflite")
    made = Machine(root)
    yield made
    made.end()
    shutil.rmtree(root)


def test_the_units_are_without_fault_and_quiet_without_a_card(machine: Machine) -> None:
    assert machine.run("systemd-analyze", "verify", "--man=no", PROVISION, ENROLL, SOURCE) == ""
    machine.run("systemd-analyze", "security", "--threshold=20", ENROLL)
    machine.run("systemd-analyze", "security", "--threshold=25", SOURCE)
    machine.run("systemd-analyze", "security", "--threshold=60", PROVISION)
    for unit in (PROVISION, ENROLL, SOURCE):
        assert machine.run("systemctl", "is-enabled", unit).strip() == "enabled"
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "fl-tiny-*") == ""


def test_a_card_makes_the_board_a_device_that_runs(machine: Machine) -> None:
    machine.run("fl-tiny", "gateway", "init", GW, "--model", "/model.tflite")
    (machine.root / GW[1:] / "fl-tiny.toml").write_text('bind = "127.0.0.1:0"\ninterval = 3600\n')
    machine.run("systemctl", "start", "fl-tiny-gateway")
    code = machine.report("gateway", "pair", GW)["code"]
    card = (
        f'pairing_code = "{code}"\n[board]\nname = "hall"\n[network]\naddress = "10.9.8.7/24"\ngateway = "10.9.8.1"\n'
    )
    card += '[source]\nkind = "spool"\nevery = 0.2\n'
    (machine.root / "boot/fl-tiny.toml").write_text(card)
    machine.run("systemctl", "start", PROVISION)
    assert machine.run("hostname").strip() == "hall"
    assert machine.run("stat", "-c", "%U %a", PENDING).strip() == "fl-tiny 600"
    assert machine.run("stat", "-c", "%U %a", "/var/lib/fl-tiny/board/fl-tiny.toml").strip() == "root 600"
    machine.run("systemctl", "start", ENROLL)
    until(lambda: machine.show(DEVICE)["ActiveState"] == "active", "device that runs")
    assert machine.run("cat", PENDING) == "" and code not in (machine.root / "boot/fl-tiny.toml").read_text()
    assert [row["name"] for row in machine.report("gateway", "devices", GW)] == ["hall"]


def test_the_source_service_starts_with_the_device_and_learns_what_a_program_drops(machine: Machine) -> None:
    until(lambda: machine.show(SOURCE)["ActiveState"] == "active", "source service")
    shape = read_model(MODEL.read_bytes()).input.shape[1:]
    np.save(machine.root / "a.npy", np.zeros(shape, np.int8))
    drop = "cd /var/lib/fl-tiny/spool; mkdir -p -m 2770 $1; cp /a.npy $1/.a.npy; mv $1/.a.npy $1/a.npy"
    machine.run("setpriv", "--reuid=4321", "--regid=fl-tiny", "--clear-groups", "sh", "-ec", drop, "sh", "2")
    spool = machine.root / "var/lib/fl-tiny/spool"
    until(lambda: not (spool / "2/a.npy").exists(), "sample", 60)
    assert machine.report("samples", "stats", DEV)["classes"] == {"2": 1}, machine.journal(SOURCE)
    assert machine.run("stat", "-c", "%U:%G %a", "/run/fl-tiny/source/socket").strip() == "fl-tiny:fl-tiny 660"
    status = machine.run("cat", f"/proc/{machine.pid(SOURCE)}/status")
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    assert int(status.split("VmRSS:")[1].split()[0]) < 40 << 10, "measured: 26.2 MiB"
    (spool / "1").mkdir(mode=0o755)  # root's: whoever made it forgot the group
    shutil.copy(machine.root / "a.npy", spool / "1/b.npy")
    until(lambda: "folder passed over" in machine.journal(SOURCE), "word of it")
    np.save(machine.root / "a.npy", np.full(shape, 100, np.int8))  # the same sample with another label is no new one
    machine.run("setpriv", "--reuid=4321", "--regid=fl-tiny", "--clear-groups", "sh", "-ec", drop, "sh", "3")
    until(lambda: not (spool / "3/a.npy").exists(), "sample")
    assert machine.report("samples", "stats", DEV)["classes"] == {"2": 1, "3": 1}


def test_networkd_takes_the_settings(machine: Machine) -> None:
    assert "Address=10.9.8.7/24" in machine.run("cat", "/run/systemd/network/10-fl-tiny.network")
    assert "/run/systemd/network" not in networkd_says(machine), "it names a file when it does not like it"
    wrong = machine.root / "run/systemd/network/11-wrong.network"
    machine.run(
        "sh", "-c", f"printf '[Match]\\nName=none\\n[Network]\\nAdress=1\\n' > /{wrong.relative_to(machine.root)}"
    )
    assert "11-wrong.network:4: Unknown key" in networkd_says(machine)
    machine.run("rm", f"/{wrong.relative_to(machine.root)}")


def networkd_says(machine: Machine) -> str:
    """What networkd says of its files, in a network of its own: the machine's is the one that these tests run in."""
    run = "timeout 3 /lib/systemd/systemd-networkd 2>&1 || true"
    return machine.run("unshare", "-n", "-m", "sh", "-c", run)


def test_a_wrong_card_is_told_and_the_boot_goes_on_with_the_last_good_one(machine: Machine) -> None:
    (machine.root / "boot/fl-tiny.toml").write_text('[board]\nname = "the hall"\n')
    machine.run("systemctl", "restart", PROVISION, code=1)
    assert "board.name" in machine.journal(PROVISION) and "last good settings" in machine.journal(PROVISION)
    assert machine.run("cat", "/run/fl-tiny/hostname") == "hall\n"
    (machine.root / "boot/fl-tiny.toml").unlink()
    machine.run("systemctl", "restart", PROVISION)
    assert machine.show(PROVISION)["Result"] == "success"


def test_a_read_only_filesystem_is_writable_for_the_erasure_alone(machine: Machine) -> None:
    boot = "mount -t tmpfs -o nosuid tmpfs /boot; printf '%s' \"$1\" > /boot/fl-tiny.toml; mount -o remount,ro /boot"
    code = machine.report("gateway", "pair", GW)["code"]
    machine.run("sh", "-ec", boot, "sh", f'pairing_code = "{code}"\n')
    machine.run("systemctl", "restart", PROVISION)
    assert code not in machine.run("cat", "/boot/fl-tiny.toml"), machine.journal(PROVISION)
    flags = next(line.split()[3] for line in machine.run("cat", "/proc/mounts").split("\n") if " /boot " in line)
    assert flags.startswith("ro,nosuid")
    assert "ignored" in machine.journal(PROVISION), "it is enrolled"


def test_without_a_source_its_service_is_quiet(machine: Machine) -> None:
    settings = machine.root / DEV[1:] / "fl-tiny.toml"
    assert "[source]" in settings.read_text(), "a wrong card and none have left the device's settings"
    machine.run("systemctl", "restart", SOURCE)
    assert machine.show(SOURCE)["ActiveState"] == "active"
    settings.write_text("max_samples = 100\n")
    machine.run("systemctl", "restart", SOURCE)
    found = machine.show(SOURCE)
    assert (found["ActiveState"], found["Result"], found["NRestarts"]) == ("inactive", "exec-condition", "0")
    settings.unlink()
    machine.run("systemctl", "restart", SOURCE)
    assert machine.show(SOURCE)["ActiveState"] == "inactive"
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "fl-tiny-*") == ""
