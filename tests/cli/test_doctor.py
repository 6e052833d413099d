# SPDX-License-Identifier: Apache-2.0
"""A doctor asks the real thing, names what must be done, and says by its exit code whether there is any."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.fleet import COMMAND, Fleet, stop

from fl_tiny import doctor
from fl_tiny.doctor import MIB, State


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path)
    yield found
    found.end()


def ask(role: str, directory: Path) -> dict[str, tuple[str, str]]:
    """Check to (state, todo); exit 1 if and only if a check fails."""
    words = [*COMMAND, role, "doctor", str(directory), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    rows = json.loads(done.stdout)
    assert done.returncode == any(row["state"] == "fail" for row in rows), done.stderr
    assert all(row["todo"] for row in rows if row["state"] != "ok"), "what is not right says what to do"
    return {row["check"]: (row["state"], row["todo"]) for row in rows}


def failures(found: dict[str, tuple[str, str]]) -> set[str]:
    return {check for check, (state, _) in found.items() if state == "fail"}


def test_a_device_is_told_to_enrol_and_then_that_its_gateway_knows_it(fleet: Fleet) -> None:
    bare = ask("device", fleet.root / "dev")
    assert failures(bare) == {"enrolled"} and "fl-tiny device enroll" in bare["enrolled"][1]
    gateway = fleet.gateway("--interval", 3600)
    device = fleet.device("dev", samples=0)
    found = ask("device", device)
    assert failures(found) == set() and found["gateway"][0] == "ok"
    assert found["samples"][0] == "warn" and "samples add" in found["samples"][1]
    run = fleet.run(device)
    run.event("connected")
    assert ask("device", device)["gateway"][0] == "ok", "the daemon's session is left alone"
    stop(run)
    stop(gateway)
    assert failures(ask("device", device)) == {"gateway"}


def test_what_was_damaged_is_named(fleet: Fleet) -> None:
    fleet.gateway("--interval", 3600)
    device = fleet.device("dev")
    model = device / "model/base.tflite"
    data = model.read_bytes()
    model.write_bytes(data[:-1] + b"?")
    (device / "secret/psk").chmod(0o644)
    (device / "fl-tiny.toml").write_text('rutime = "numpy"\n')
    found = ask("device", device)
    assert {"model", "secrets", "settings"} <= failures(found)
    assert "chmod 600" in found["secrets"][1]


def test_a_gateway_is_told_what_stands_in_its_way(fleet: Fleet) -> None:
    assert failures(ask("gateway", fleet.root / "nothing")) == {"fleet"}
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind(("127.0.0.1", 0))
    (fleet.gw / "fl-tiny.toml").write_text(f'bind = "127.0.0.1:{taken.getsockname()[1]}"\nstrategy = "fedmagic"\n')
    found = ask("gateway", fleet.gw)
    taken.close()
    assert failures(found) == {"port", "strategy"} and "is another gateway running?" in found["port"][1]
    (fleet.gw / "fl-tiny.toml").unlink()
    assert ask("gateway", fleet.gw)["address"][0] == "warn"
    fleet.gateway()
    found = ask("gateway", fleet.gw)
    assert failures(found) == set() and found["address"][0] == found["port"][0] == "ok"


def test_limits_of_a_machine() -> None:
    assert doctor.memory("MemTotal: 9 kB\nMemAvailable:   102400 kB\n", 100 * MIB).state is State.OK
    assert doctor.memory("MemAvailable:   102400 kB\n", 101 * MIB).state is State.WARN
    assert doctor.memory("", 1).state is State.WARN
    assert [doctor.disk(n * MIB).state for n in (64, 63, 16, 15)] == [State.OK, State.WARN, State.WARN, State.FAIL]
    assert doctor.clock("jiffies\n", rtc=True).state is State.WARN
    assert doctor.clock("arch_sys_counter\n", rtc=False).state is State.OK, "nothing of ours asks for the date"
    assert doctor.limits("cpu io memory pids\n", "").state is State.OK
    assert doctor.limits("", "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t4\t9\t1\n").state is State.OK
    assert doctor.limits("cpu pids\n", "memory\t0\t1\t0\n").state is State.WARN, "Raspberry Pi OS"


def test_a_file_that_root_left_behind_is_found(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"")
    assert doctor.owned(tmp_path).state is State.OK
    try:
        (tmp_path / "fl-tiny.toml").write_text("")
        os.chown(tmp_path / "fl-tiny.toml", 12_345, 12_345)
        assert doctor.owned(tmp_path).state is State.OK, "settings are the operator's"
        os.chown(tmp_path / "state.db", 12_345, 12_345)
    except PermissionError:
        pytest.skip("needs root to give a file away")
    found = doctor.owned(tmp_path)
    assert found.state is State.FAIL and found.todo.startswith("chown -R")
