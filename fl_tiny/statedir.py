# SPDX-License-Identifier: Apache-2.0
"""One directory owned by a device or a gateway: its layout, secrets, lock and clock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from fl_tiny import disks
from fl_tiny.errors import ConfigError, EnvironmentFault
from fl_tiny.files import read_private, write_atomic

SETTINGS = "fl-tiny.toml"
DATABASE = "state.db"
SECRET = "secret"  # noqa: S105 - the name of a folder
MODEL = "model"
SOURCE_LOCK = "source.lock"  # of a device's samples serve, which runs beside its daemon
LOCK_PATIENCE_S = 1.0  # a daemon that is just ending gets so long
_LOCK = "lock"
_FLOCK = struct.Struct("hhqqi0q")  # struct flock of fcntl(2), with 64-bit offsets as Python is built; padded at its end
_DIR_MODE = 0o750  # a group may read model/ (docs/protocol.md, at rest)


def create(directory: Path) -> None:
    """Make DIR (0750), DIR/secret (0700) and DIR/model (0750). Raises: EnvironmentFault."""
    try:
        directory.mkdir(mode=_DIR_MODE, parents=True, exist_ok=True)
        (directory / SECRET).mkdir(mode=0o700, exist_ok=True)
        (directory / MODEL).mkdir(mode=_DIR_MODE, exist_ok=True)
    except OSError as cause:
        raise disks.fault_of(cause.errno, directory, f"cannot make {directory}") from cause


def write_secret(directory: Path, name: str, data: bytes) -> None:
    """Put a secret into DIR/secret, mode 0600."""
    write_atomic(directory / SECRET / name, data, 0o600)


def read_secret(directory: Path, name: str) -> bytes:
    """A secret of DIR. Raises: ConfigError when others may read it; EnvironmentFault when it is not there."""
    return read_private(directory / SECRET / name)


def check_modes(directory: Path) -> None:
    """Raises: ConfigError when others may look into DIR/secret or DIR/state.db, which hold keys; asked at a start."""
    for path, wanted in ((directory / SECRET, 0o700), (directory / DATABASE, 0o600)):
        if path.is_symlink():
            raise ConfigError(f"{path} is a link; keys lie in DIR itself", hint=f"move what it points to to {path}")
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else wanted
        if mode & 0o077:
            raise ConfigError(f"{path} has mode {mode:04o}; it wants {wanted:04o}", hint=f"chmod {wanted:o} {path}")


def act_as_owner(directory: Path) -> None:
    """Become DIR's owner when root runs a command, so that the daemon can still write what the command made."""
    if os.geteuid() != 0:
        return
    owner = directory.stat()
    if owner.st_uid:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


@contextlib.contextmanager
def acting_as_owner(directory: Path) -> Iterator[None]:
    """Be DIR's owner within the block when root is at work: what is done there can touch nothing that is root's."""
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


@contextlib.contextmanager
def locked(directory: Path, name: str = _LOCK) -> Iterator[None]:
    """Hold a lock of DIR, as its one daemon of a kind. Raises: ConfigError when another process holds it for a second.

    The lock belongs to the open file, so that ``is_running`` can ask for it without taking it. Source: fcntl(2).
    """
    with (directory / name).open("ab") as file:
        os.fchmod(file.fileno(), 0o640)
        end = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, _whole(fcntl.F_WRLCK))
                break
            except (BlockingIOError, PermissionError) as cause:  # POSIX allows EAGAIN and EACCES
                if time.monotonic() > end:
                    raise ConfigError(f"{directory} is in use: another process runs there (it holds {name})") from cause
            time.sleep(0.05)
        yield


def is_running(directory: Path) -> bool:
    """True while a daemon holds DIR's lock. Takes nothing: a daemon that starts meanwhile is not in the way.

    Raises: EnvironmentFault when the lock may not be looked at.
    """
    try:
        with (directory / _LOCK).open("rb") as file:
            found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _whole(fcntl.F_WRLCK))
    except FileNotFoundError:
        return False
    except OSError as cause:
        raise EnvironmentFault(f"cannot look at {directory / _LOCK}: {cause.strerror}") from cause
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def _whole(kind: int) -> bytes:
    """``struct flock`` for all of a file; the process id must be 0 for locks of open files."""
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def free_bytes(directory: Path) -> int:
    """Bytes that may still be written where ``directory`` is."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def boot_clock_s() -> float:
    """Seconds since boot, time in suspension included; the one clock that two processes of a machine share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Which boot ``boot_clock_s`` counts from."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
