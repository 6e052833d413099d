# SPDX-License-Identifier: Apache-2.0
"""Boards on loopback: an sshd each, whose commands run in a root, or with a state directory, of that board alone."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Board:
    """One sshd. host: its destination."""

    host: str
    process: subprocess.Popen[bytes]


class Sshd:
    """sshd processes and the key that opens them; every one is ended by its id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.boards: list[Board] = []
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host", "user"):
            if not (folder / name).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)  # privilege separation wants it

    def add(self, inside: str) -> Board:
        """Start an sshd whose every command goes through ``inside``, a shell line that ends in a command to prefix."""
        port = _free_port()
        folder = self._folder / str(port)
        folder.mkdir()
        wrapper = folder / "inside"
        wrapper.write_text(f'#!/bin/sh\n{inside} "$SSH_ORIGINAL_COMMAND"\n')
        wrapper.chmod(0o755)
        lines = (
            f"ListenAddress 127.0.0.1:{port}",
            f"HostKey {self._folder}/host",
            f"AuthorizedKeysFile {self._folder}/user.pub",
            f"ForceCommand {wrapper}",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "StrictModes no",
            "UsePAM no",
            f"PidFile {folder}/pid",
        )
        (folder / "config").write_text("\n".join(lines) + "\n")
        daemon = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert daemon is not None
        log = (folder / "log").open("wb")
        process = subprocess.Popen([daemon, "-D", "-e", "-f", folder / "config"], stderr=log)
        board = Board(f"ssh://root@127.0.0.1:{port}", process)
        self.boards.append(board)
        _wait_for(port)
        return board

    @property
    def options(self) -> list[str]:
        """For ``fleet install``: the key, and no file of the machine's own."""
        said = (f"IdentityFile={self._folder}/user", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
        return [word for option in (*said, "LogLevel=ERROR", "IdentitiesOnly=yes") for word in ("--ssh-option", option)]

    def end(self) -> None:
        for board in self.boards:
            board.process.kill()
            board.process.wait(10)


def own_state(state: Path, path: str) -> str:
    """A line for ``Sshd.add``: the machine's own root, but for /var/lib/fl-tiny and the search path."""
    script = f'mount --bind {shlex.quote(str(state))} /var/lib/fl-tiny && PATH={shlex.quote(path)} exec sh -c "$1"'
    return f"exec unshare -m sh -c {shlex.quote(script)} sh"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"no sshd on port {port}")
