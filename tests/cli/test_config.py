# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny config check`` and the options that scripts and health checks rest on, as processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.fleet import MODEL, Fleet, cli


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_right_file_is_said_to_be_right_and_whose_it_is(tmp_path: Path) -> None:
    file = written(tmp_path / "a.toml", 'gateway = "hub.local:5684"\nmax_samples = 100\n')
    assert cli("config", "check", file) == {"ok": True, "role": "device"}
    assert cli("config", "check", file, "--role", "device")["ok"]
    assert cli("config", "check", written(tmp_path / "b.toml", "epochs = 3\n"))["role"] == "gateway"


def test_every_fault_is_named_in_one_line(tmp_path: Path) -> None:
    line = cli("config", "check", written(tmp_path / "a.toml", 'epochs = 0\nquorun = 1\nrate = "fast"\n'), code=78)
    for word in ("epochs: 0 is not 1 to 100", "did you mean quorum?", "rate: 'fast' is not a float"):
        assert word in line


def test_arrays_in_arrays_are_a_fault_and_no_traceback(tmp_path: Path) -> None:
    file = written(tmp_path / "a.toml", "x = " + "[" * 30_000)
    assert "too deep" in cli("config", "check", file, code=78)


@pytest.mark.parametrize("value", ["hub:port", "[fe80::1", ":5684"])
def test_an_address_that_nobody_could_use_is_a_fault(tmp_path: Path, value: str) -> None:
    line = cli("config", "check", written(tmp_path / "a.toml", f'gateway = "{value}"\n'), code=78)
    assert "is not an address" in line


def test_a_file_of_the_other_role_or_none_at_all_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.toml", "epochs = 3\n")
    assert "unknown key epochs" in cli("config", "check", file, "--role", "device", code=78)
    assert "is not a file" in cli("config", "check", tmp_path / "none.toml", code=78)


def test_what_is_set_up_already_is_left_as_it_is_and_health_follows_the_daemon(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    try:
        assert cli("gateway", "init", fleet.gw, "--model", MODEL, "--if-needed") == fleet.init
        assert "does not run" in cli("gateway", "status", fleet.gw, "--running", code=69)
        fleet.gateway()
        assert cli("gateway", "status", fleet.gw, "--running")["uri"]
        code = cli("gateway", "pair", fleet.gw)["code"]
        made = cli("device", "enroll", tmp_path / "dev", "--code", code, "--if-needed")
        again = cli("device", "enroll", tmp_path / "dev", "--code", "@/no/such/file", "--if-needed")
        assert again == made
        assert "does not run" in cli("device", "status", tmp_path / "dev", "--running", code=69)
        fleet.run(tmp_path / "dev").event("connected")
        assert cli("device", "status", tmp_path / "dev", "--running")["state"] == "running"
    finally:
        fleet.end()
