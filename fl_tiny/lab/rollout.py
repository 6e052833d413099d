# SPDX-License-Identifier: Apache-2.0
"""Boards set up over the system's ssh: looked at, given the package, enrolled with one code each, started.

Each step is left out where a board shows that it is done, so the same command goes on after a fault. Keys, host names
and jump hosts are ssh's own business; a destination is anything that ssh takes, ``ssh://user@host:port`` too.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from fl_tiny.errors import EnvironmentFault, FlTinyError

DIRECTORY = "/var/lib/fl-tiny/device"
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
STEP_S = 900.0  # of one step; a slow board installs numpy for minutes
LAST_WORDS = 200  # characters of a failed step's stderr in a message
MAX_ANSWER = 1 << 20
PROBE = """
echo "uid=$(id -u)"
. /etc/os-release 2>/dev/null && echo "os=$ID ${VERSION_ID:-}"
if command -v dpkg >/dev/null; then echo "arch=$(dpkg --print-architecture)"; echo manager=apt
elif command -v apk >/dev/null; then echo "arch=$(apk --print-arch)"; echo manager=apk; fi
if [ -d /run/systemd/system ]; then echo service=systemd
elif command -v rc-service >/dev/null; then echo service=openrc; fi
command -v fl-tiny >/dev/null && echo "version=$(fl-tiny --version | cut -d' ' -f2)"
id=$(fl-tiny device status "$1" --json 2>/dev/null) && echo "status=$id"
exit 0
"""
START = {
    "systemd": "systemctl enable --now fl-tiny-device.service",
    "openrc": "rc-update -q add fl-tiny-device default; rc-service -q fl-tiny-device start",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked. packages: a folder of .deb and .apk files; None: the board's own repository has fl-tiny.

    gateway: HOST:PORT for the boards; None: the address in the code.   directory: of the device on the board.
    """

    packages: Path | None = None
    gateway: str | None = None
    directory: str = DIRECTORY
    parallel: int = 8
    dry_run: bool = False
    ssh: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Board:
    """What a board says of itself. id: of its enrolment.   service: what would start the daemon."""

    uid: int
    os: str
    arch: str
    manager: str
    service: str
    version: str
    id: str


@dataclass(slots=True)
class Row:
    """What came of one board. did: the steps that were taken, or would be."""

    host: str
    os: str = ""
    did: list[str] = field(default_factory=list)
    id: str = ""
    fault: str = ""
    seconds: float = 0.0


async def roll_out(
    hosts: list[str], options: Options, next_code: Callable[[], str], told: Callable[[Row], None]
) -> list[Row]:
    """Set up every host, some at a time; a row each, in the order of ``hosts``. A board's fault stops that board alone.

    next_code: a pairing code nobody has used.   told: is given each row when its board is done.
    """
    free = asyncio.Semaphore(options.parallel)

    async def one(host: str) -> Row:
        async with free:
            row, began = Row(host), time.monotonic()
            try:
                await _Visit(host, options, row).run(next_code)
            except FlTinyError as fault:
                row.fault = str(fault)
            row.seconds = round(time.monotonic() - began, 1)
            told(row)
            return row

    return list(await asyncio.gather(*map(one, hosts)))


def parse_board(answer: str) -> Board:
    """What the probe printed. Raises: EnvironmentFault for what is no answer of it."""
    facts = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    try:
        known = json.loads(facts["status"])["id"] if "status" in facts else ""
        return Board(
            int(facts["uid"]),
            facts.get("os", "unknown").strip(),
            facts.get("arch", ""),
            facts.get("manager", ""),
            facts.get("service", ""),
            facts.get("version", ""),
            str(known),
        )
    except (KeyError, ValueError, TypeError) as cause:
        raise EnvironmentFault(f"the board's answer is not understood: {answer[:LAST_WORDS]!r}") from cause


def package_for(folder: Path, board: Board) -> Path:
    """The package of this board's kind and architecture, the newest by name. Raises: EnvironmentFault."""
    if board.manager == "apt":
        found = sorted(folder.glob(f"fl-tiny_*_{board.arch}.deb")) + sorted(folder.glob("fl-tiny_*_all.deb"))
    else:
        found = sorted(folder.glob(f"{board.arch}/fl-tiny-[0-9]*.apk"))
    if not found:
        raise EnvironmentFault(f"{folder} has no package for {board.os} on {board.arch or 'an unknown machine'}")
    return found[-1]


class _Visit:
    """The steps at one board."""

    def __init__(self, host: str, options: Options, row: Row) -> None:
        self._host, self._options, self._row = host, options, row
        self._sudo = ""

    async def run(self, next_code: Callable[[], str]) -> None:
        """Look, then do what is not done yet."""
        directory = shlex.quote(self._options.directory)
        board = parse_board(await self._ssh(f"sh -s {directory}", PROBE))
        self._sudo = "" if board.uid == 0 else "sudo -n "
        self._row.os, self._row.id = f"{board.os} {board.arch}".strip(), board.id
        if not board.version:
            await self._step("install", lambda: self._install(board))
        if not board.id:
            await self._step("enrol", lambda: self._enrol(next_code()))
        if board.service:
            await self._step("start", lambda: self._ssh(f"{self._sudo}sh -c {shlex.quote(START[board.service])}"))

    async def _step(self, name: str, act: Callable[[], Awaitable[object]]) -> None:
        if not self._options.dry_run:
            await act()
        self._row.did.append(name)

    async def _install(self, board: Board) -> None:
        if not board.manager:
            raise EnvironmentFault(f"{board.os} has neither apt nor apk: no package is made for it")
        if self._options.packages is None:
            name = "fl-tiny"
        else:
            package = package_for(self._options.packages, board)
            name = f"/tmp/{package.name}"  # noqa: S108 - on the board, by a user that is root or may be
            await self._ssh(f"cat > {shlex.quote(name)}", package.read_bytes())
        quoted = shlex.quote(name)
        if board.manager == "apt":
            command = f"env DEBIAN_FRONTEND=noninteractive apt-get install -y -q {quoted}"
        else:  # the file came over ssh from whoever may do anything there
            command = f"apk add {'--allow-untrusted ' if self._options.packages else ''}{quoted}"
        await self._ssh(self._sudo + command)

    async def _enrol(self, code: str) -> None:
        words = ["fl-tiny", "device", "enroll", self._options.directory, "--code", "-", "--json"]
        words += ["--gateway", self._options.gateway] if self._options.gateway else []
        words += ["--name", self._host.removeprefix("ssh://").partition("@")[2] or self._host]
        answer = await self._ssh(self._sudo + shlex.join(words), code)  # on stdin: never in a list of processes
        try:
            self._row.id = str(json.loads(answer)["id"])
        except (ValueError, KeyError) as cause:
            raise EnvironmentFault(f"the board enrolled but said {answer[:LAST_WORDS]!r}") from cause

    async def _ssh(self, command: str, stdin: str | bytes = "") -> str:
        """What a command on the board printed. Raises: EnvironmentFault with its last words."""
        words = [*SSH, *self._options.ssh, "--", self._host, command]
        pipe = asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe)
        except FileNotFoundError as cause:
            raise EnvironmentFault("ssh is not installed", hint="apt-get install openssh-client") from cause
        try:
            data = stdin.encode() if isinstance(stdin, str) else stdin
            out, err = await asyncio.wait_for(child.communicate(data), STEP_S)
        except asyncio.TimeoutError as cause:
            raise EnvironmentFault(f"no end after {STEP_S:.0f} s of: {command[:LAST_WORDS]}") from cause
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode != 0:
            words_left = err.decode("utf-8", "replace").strip().split("\n")[-1][-LAST_WORDS:]
            raise EnvironmentFault(f"{command.split(' ', maxsplit=1)[0]} ended with {child.returncode}: {words_left}")
        return out[:MAX_ANSWER].decode("utf-8", "replace")
