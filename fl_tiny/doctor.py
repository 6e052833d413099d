# SPDX-License-Identifier: Apache-2.0
"""What a doctor finds: one finding a check, the checks that device and gateway share, and how a fault becomes one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fl_tiny import config, database, disks, statedir
from fl_tiny.errors import FlTinyError
from fl_tiny.net import openssl

MIB = 1 << 20
LOW_DISK = 64 * MIB  # guess: a database that grows by samples, its WAL, and two copies of a model
NO_DISK = 16 * MIB
RTC = Path("/sys/class/rtc/rtc0")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
CONTROLLERS = Path("/sys/fs/cgroup/cgroup.controllers")  # of cgroup v2
OLD_CONTROLLERS = Path("/proc/cgroups")  # of v1: name, hierarchy, cgroups, enabled; cgroups(7)
MEMORY = Path("/proc/meminfo")


class State(Enum):
    """fail: something must be done; warn: it works, but should be known."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. todo: what the reader can do; empty when there is nothing to do."""

    check: str
    state: State
    detail: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Odd:
    """What a check says of something that works and should be known."""

    detail: str
    todo: str = ""


def tried(name: str, check: Callable[[], str | Odd]) -> Finding:
    """The finding of a check: what it returns, or the fault that it raises."""
    try:
        found = check()
    except FlTinyError as fault:
        return Finding(name, State.FAIL, fault.what, fault.hint)
    if isinstance(found, Odd):
        return Finding(name, State.WARN, found.detail, found.todo)
    return Finding(name, State.OK, found)


def openssl_found() -> str:
    """The version of the system's OpenSSL. Raises: EnvironmentFault."""
    number = openssl.load().OpenSSL_version_num()
    return f"OpenSSL {number >> 28}.{number >> 20 & 0xFF}"


def sqlite_found() -> str | Odd:
    """The version of SQLite, and whether its log can be reset during a checkpoint (docs/adr/0066)."""
    version = database.sqlite_version()
    if database.resets_safely():
        return f"SQLite {version}"
    return Odd(
        f"SQLite {version} can damage a database with two writers (WAL reset bug); fl-tiny's write one at a time",
        "nothing for fl-tiny; other programs must not write state.db; repaired in 3.44.6, 3.50.7, 3.51.3",
    )


def settings_read(directory: Path, cls: type[object]) -> str:
    """Where the settings are from. Raises: ConfigError that lists every fault."""
    path = directory / statedir.SETTINGS
    config.load(path, cls)
    return str(path) if path.exists() else "defaults"


def machine(directory: Path, needed_bytes: int) -> list[Finding]:
    """Memory for ``needed_bytes``, room for DIR, the clock, and whether a service's memory limit holds here."""
    free = os.statvfs(directory) if directory.exists() else None
    found = [memory(_text(MEMORY), needed_bytes)]
    if free is not None:
        found.append(disk(free.f_bavail * free.f_frsize))
    return [*found, clock(_text(CLOCK_SOURCE), RTC.exists()), limits(_text(CONTROLLERS), _text(OLD_CONTROLLERS))]


def memory(meminfo: str, needed_bytes: int) -> Finding:
    """meminfo: the text of /proc/meminfo."""
    lines = [line.split() for line in meminfo.split("\n") if line.startswith("MemAvailable:")]
    if not lines:
        return Finding("memory", State.WARN, "the kernel does not say how much is free")
    free = int(lines[0][1]) << 10  # kB, proc_meminfo(5)
    detail = f"{free // MIB} MiB free, {needed_bytes // MIB} wanted at the most"
    if free < needed_bytes:
        return Finding("memory", State.WARN, detail, "end other programs, or keep fewer samples")
    return Finding("memory", State.OK, detail)


def disk(free_bytes: int) -> Finding:
    """free_bytes: on DIR's file system."""
    detail = f"{free_bytes // MIB} MiB free"
    if free_bytes >= LOW_DISK:
        return Finding("disk", State.OK, detail)
    return Finding("disk", State.FAIL if free_bytes < NO_DISK else State.WARN, detail, "make room where DIR is")


def clock(source: str, rtc: bool) -> Finding:
    """source: what the kernel counts time by.   rtc: is there a clock that runs without power?"""
    if source.strip() == "jiffies":
        return Finding("clock", State.WARN, "the kernel counts by jiffies", "timers of some milliseconds are coarse")
    spare = "a hardware clock" if rtc else "no hardware clock; nothing here needs one, but the log's dates may be wrong"
    return Finding("clock", State.OK, f"{source.strip() or 'unknown source'}, {spare}")


def limits(controllers: str, old: str) -> Finding:
    """controllers, old: the texts of CONTROLLERS and of OLD_CONTROLLERS."""
    enabled = [line.split()[0] for line in old.split("\n") if line.split()[3:] == ["1"]]
    if "memory" in [*controllers.split(), *enabled]:
        return Finding("limits", State.OK, "a service's memory limit holds")
    todo = "for a limit: cgroup_enable=memory on the kernel's command line (Raspberry Pi: cmdline.txt)"
    return Finding("limits", State.WARN, "the kernel has no memory controller: MemoryMax= has no effect", todo)


def owned(directory: Path) -> Finding:
    """Can DIR be written, and is everything in it its owner's?"""
    fix = f"chown -R {directory.stat().st_uid}:{directory.stat().st_gid} {directory}" if directory.exists() else ""
    try:
        settings = directory / statedir.SETTINGS  # the operator's: it is only read
        owner = directory.stat().st_uid
        foreign = [path for path in directory.rglob("*") if path != settings and path.lstat().st_uid != owner]
        if foreign:
            return Finding("state", State.FAIL, f"{foreign[0]} is not the owner's of {directory}", fix)
        with tempfile.NamedTemporaryFile(dir=directory) as probe:
            probe.write(b"doctor")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as refused:
        fault = disks.fault_of(refused.errno, directory, f"{directory} cannot be written")
        return Finding("state", State.FAIL, fault.what, fault.hint)
    return Finding("state", State.OK, f"{directory} can be written")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
