# SPDX-License-Identifier: Apache-2.0
"""The daemons speak systemd's protocol: heard on a real socket, as systemd would hear it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e.fleet import MODEL, cli

from fl_tiny import notify

PATIENCE_S = 20.0


class Ear:
    """What systemd is told, in order."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.settimeout(PATIENCE_S)
        self.heard: list[str] = []

    def until(self, fact: str, times: int = 1) -> None:
        while self.heard.count(fact) < times:
            self.heard += self.socket.recv(4096).decode().split("\n")


@contextmanager
def daemon(*words: object, address: str, watchdog_us: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(watchdog_us)}
    process = subprocess.Popen([sys.executable, "-m", "fl_tiny", *map(str, words)], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_gateway_is_ready_when_it_listens_and_beats_until_its_loop_hangs(tmp_path: Path, abstract: bool) -> None:
    cli("gateway", "init", tmp_path / "gw", "--model", MODEL)
    address = f"@fl-tiny-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    ear = Ear(address)
    with daemon(
        "gateway", "run", tmp_path / "gw", "--bind", "127.0.0.1:0", address=address, watchdog_us=400_000
    ) as process:
        ear.until("READY=1")
        uri = cli("gateway", "status", tmp_path / "gw")["uri"]
        ear.until("WATCHDOG=1", times=4)
        assert f"STATUS=listening at {uri}" in ear.heard
        process.send_signal(signal.SIGSTOP)  # a loop that does not turn says nothing
        time.sleep(0.5)
        ear.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ear.socket.recv(4096)
        ear.socket.settimeout(PATIENCE_S)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        ear.until("STOPPING=1")
        assert process.wait(PATIENCE_S) == 0


def test_a_device_is_ready_without_its_gateway_and_says_what_it_waits_for(tmp_path: Path) -> None:
    gateway, device = tmp_path / "gw", tmp_path / "dev"
    cli("gateway", "init", gateway, "--model", MODEL)
    ear = Ear(str(tmp_path / "notify"))
    run = ("gateway", "run", gateway, "--bind", "127.0.0.1:0")
    with daemon(*run, address=str(tmp_path / "notify"), watchdog_us=0):
        ear.until("READY=1")
        cli("device", "enroll", device, "--code", cli("gateway", "pair", gateway)["code"])
    ear.heard.clear()
    with daemon("device", "run", device, address=str(tmp_path / "notify"), watchdog_us=1_000_000):
        ear.until("READY=1")
        while not any(fact.startswith("STATUS=no gateway, again in") for fact in ear.heard):
            ear.heard += ear.socket.recv(4096).decode().split("\n")
        assert "WATCHDOG=1" in ear.heard


def test_nothing_is_said_where_nobody_listens() -> None:
    assert not notify.tell("READY=1", environment={})
    assert not notify.tell("READY=1", environment={"NOTIFY_SOCKET": "/nowhere/notify"})
    assert not notify.tell("READY=1", environment={"NOTIFY_SOCKET": "vsock:2:1"})
    assert notify.watchdog_s({}) is None
    assert notify.watchdog_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}) == 3.0
    assert notify.watchdog_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}) is None
    assert notify.watchdog_s({"WATCHDOG_USEC": "soon"}) is None
