# SPDX-License-Identifier: Apache-2.0
"""The board's system as an update sees it: where its files lie, which release runs, from which slot."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.files import read_bounded, write_atomic
from fl_tiny.protocol.release import Release, read_release

log = logging.getLogger(__name__)

UPDATE = "update"  # below a device's DIR: what its daemon fetches, and whether it reached its gateway
REACHED = "reached"
RECORD = "update.json"
SMALL = 65_536  # bytes


@dataclass(frozen=True, slots=True)
class Record:
    """What became of the last update. name: of the bundle, as its gateway has it; empty: it came by hand.

    state: installed, confirmed, refused, fell back.   reached: the gateway was, by the release that installed it.
    """

    name: str
    release: str
    state: str
    reached: bool = False
    code: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A system below ``root``; only tests have another one than /."""

    root: Path = Path("/")

    @property
    def boot(self) -> Path:
        """Where the boot partition is mounted."""
        return self.root / "boot"

    @property
    def work(self) -> Path:
        """Root's own folder for updates: nobody else can change what lies there."""
        return self.root / "var/lib/fl-tiny/update"

    @property
    def rauc_config(self) -> Path:
        """What says which slots this system has; absent: none."""
        return self.root / "etc/rauc/system.conf"

    def release(self) -> Release | None:
        """The release that runs; None on a system that is none of ours. Raises: DataError when it cannot be read."""
        path = self.root / "etc/fl-tiny-release"
        if not path.exists():
            return None
        return read_release(read_bounded(path, SMALL, DataError).decode("utf-8", "replace"))

    def booted(self) -> str | None:
        """The slot that runs, as the kernel was told."""
        found = re.search(r"(?:^|\s)rauc\.slot=([AB])(?:\s|$)", _text(self.root / "proc/cmdline"))
        return found.group(1) if found else None

    def boot_id(self) -> str:
        """Which start of the machine this is."""
        return _text(self.root / "proc/sys/kernel/random/boot_id").strip()

    def record(self) -> Record | None:
        """What became of the last update; None: there was none, or nobody knows."""
        try:
            found = Record(**json.loads(_text(self.work / RECORD)))
        except (ValueError, TypeError):
            return None
        texts = (found.name, found.release, found.state, found.why)
        return found if all(isinstance(t, str) for t in texts) and isinstance(found.code, int) else None

    def keep(self, record: Record) -> None:
        """Note what became of an update, on the disk when this returns."""
        self.work.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(self.work / RECORD, json.dumps(asdict(record)).encode(), 0o644)


def note_reached(directory: Path, machine: Machine) -> None:
    """The device DIR has reached its gateway in this start of the machine: written once a start."""
    path = directory / UPDATE / REACHED
    if _text(path).strip() == machine.boot_id():
        return
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        write_atomic(path, machine.boot_id().encode() + b"\n", 0o640)
    except (OSError, EnvironmentFault) as fault:  # the next session tries again; rounds need it not
        log.warning("release not confirmed yet why=%r", str(fault))


def has_reached(directory: Path, machine: Machine) -> bool:
    """True when this device has reached its gateway since the machine started."""
    return bool(machine.boot_id()) and _text(directory / UPDATE / REACHED).strip() == machine.boot_id()


def _text(path: Path) -> str:
    """What a small file says; empty when it says nothing."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            return file.read(SMALL).decode("utf-8", "replace")
    except OSError:
        return ""
