# SPDX-License-Identifier: Apache-2.0
"""Secrets that others can read start nothing, and the message says which file and which mode."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fl_tiny import statedir
from fl_tiny.errors import ConfigError, EnvironmentFault, FlTinyError
from fl_tiny.gateway import manifests, setup

from .e2e.fleet import MODEL, cli

MODES = (0o600, 0o400, 0o640, 0o644, 0o604, 0o660, 0o601, 0o777)


@pytest.fixture
def gw(tmp_path: Path) -> Path:
    setup.initialise(tmp_path / "gw", MODEL, None, manifests.Wanted(2))
    return tmp_path / "gw"


@pytest.mark.parametrize("mode", MODES, ids=oct)
def test_a_secret_is_read_when_its_owner_alone_may(tmp_path: Path, mode: int) -> None:
    statedir.create(tmp_path)
    statedir.write_secret(tmp_path, "psk", b"x" * 32)
    path = tmp_path / "secret/psk"
    path.chmod(mode)
    if mode & 0o077 == 0:
        assert statedir.read_secret(tmp_path, "psk") == b"x" * 32
        return
    with pytest.raises(ConfigError) as refused:
        statedir.read_secret(tmp_path, "psk")
    assert str(path) in str(refused.value) and f"{mode:04o}" in str(refused.value) and "chmod 600" in str(refused.value)


def test_a_link_a_stranger_s_file_and_none_at_all_are_no_secret(tmp_path: Path) -> None:
    statedir.create(tmp_path)
    (tmp_path / "elsewhere").write_bytes(b"x" * 32)
    (tmp_path / "secret/psk").symlink_to(tmp_path / "elsewhere")
    for name in ("psk", "none"):
        with pytest.raises(EnvironmentFault):
            statedir.read_secret(tmp_path, name)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    statedir.write_secret(tmp_path, "key", b"x" * 32)
    os.chown(tmp_path / "secret/key", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        statedir.read_secret(tmp_path, "key")


@pytest.mark.parametrize(("name", "mode"), [("secret", 0o750), ("secret", 0o701), ("state.db", 0o640)])
def test_a_daemon_starts_with_no_open_door(gw: Path, name: str, mode: int) -> None:
    (gw / name).chmod(mode)
    with pytest.raises(ConfigError) as refused:
        statedir.check_modes(gw)
    assert f"{mode:04o}" in str(refused.value) and name in str(refused.value)
    assert f"{mode:04o}" in cli("gateway", "run", gw, "--bind", "127.0.0.1:0", code=78)


def test_a_gateway_says_which_key_is_open(gw: Path) -> None:
    (gw / "secret/gateway.key").chmod(0o644)
    line = cli("gateway", "run", gw, "--bind", "127.0.0.1:0", code=78)
    assert "gateway.key" in line and "0644" in line


def test_a_fleets_key_is_as_private_and_never_overwritten(tmp_path: Path) -> None:
    made = cli("fleet", "init", tmp_path / "keys")
    assert (tmp_path / "keys/model.key").stat().st_mode & 0o777 == 0o600
    assert "never overwritten" in cli("fleet", "init", tmp_path / "keys", code=78)
    out = tmp_path / "m"
    words = ("--model", MODEL, "--counter", 1, "--out", out)
    assert cli("fleet", "sign", tmp_path / "keys", *words)["model_key"] == made["model_key"]
    (tmp_path / "keys/model.key").chmod(0o640)
    assert "0640" in cli("fleet", "sign", tmp_path / "keys", *words, code=78)


def test_a_manifest_goes_with_its_own_model_alone(tmp_path: Path) -> None:
    cli("fleet", "init", tmp_path / "keys")
    cli("fleet", "sign", tmp_path / "keys", "--model", MODEL, "--counter", 1, "--out", tmp_path / "m")
    other = MODEL.with_name("head_64x10.tflite")
    init = ("gateway", "init", tmp_path / "gw", "--manifest", tmp_path / "m")
    assert "not the model" in cli(*init, "--model", other, code=65)
    assert "fleet sign" in cli(*init, "--model", MODEL, "--layers", 1, code=78)
    data = bytearray((tmp_path / "m").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(FlTinyError):
        manifests.read_manifest(tmp_path / "bad")
    assert not (tmp_path / "gw").exists()
    cli(*init, "--model", MODEL)
    assert not (tmp_path / "gw/secret/model.key").exists()
    for counter, key, code, words in ((1, "keys", 78, "not above"), (2, "others", 65, "another key")):
        if key == "others":
            cli("fleet", "init", tmp_path / key)
        out = tmp_path / f"{counter}{key}"
        cli("fleet", "sign", tmp_path / key, "--model", other, "--counter", counter, "--out", out)
        assert words in cli("gateway", "publish", tmp_path / "gw", out, "--model", other, code=code)


def test_a_daemon_is_seen_while_it_runs_and_two_cannot(tmp_path: Path) -> None:
    assert not statedir.is_running(tmp_path), "there is no lock yet"
    with statedir.locked(tmp_path):
        assert statedir.is_running(tmp_path)
        with pytest.raises(ConfigError, match="in use"), statedir.locked(tmp_path):
            pass
    assert not statedir.is_running(tmp_path)


PROBES = "from pathlib import Path; from fl_tiny import statedir\nwhile True: statedir.is_running(Path({!r}))"


def test_who_asks_whether_a_daemon_runs_keeps_none_from_starting(tmp_path: Path) -> None:
    """Of 1,822 starts beside one process that asked in a loop, 192 were refused when asking took the lock."""
    (tmp_path / "lock").touch()
    probes = [subprocess.Popen([sys.executable, "-c", PROBES.format(str(tmp_path))]) for _ in range(2)]
    try:
        started = time.monotonic()
        for _ in range(500):
            with statedir.locked(tmp_path):
                pass
        assert time.monotonic() - started < 20, "nor does it wait for them"
    finally:
        for probe in probes:
            probe.kill()
            probe.wait(10)


def test_a_daemon_that_starts_while_another_ends_waits_for_it(tmp_path: Path) -> None:
    def ending() -> None:
        with statedir.locked(tmp_path):
            held.set()
            time.sleep(0.4)

    held = threading.Event()
    other = threading.Thread(target=ending)
    other.start()
    held.wait(5)
    with statedir.locked(tmp_path):
        pass
    other.join(5)
