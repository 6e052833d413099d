# SPDX-License-Identifier: Apache-2.0
"""Whole files in and out: bounded when read, complete or absent when written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from fl_tiny import disks
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault, ModelError

_PIECE = 1 << 16  # bytes in memory at a time
LEFTOVERS = frozenset({  # of Windows, macOS, NAS systems, cameras; hidden names besides
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "__macosx", "icon\r",
    "@eadir", "#recycle", "lost+found", "lost.dir", "picasa.ini",
})  # fmt: skip


class Sink(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> int:
        """Add bytes."""


def open_plain(path: Path, limit: int) -> IO[bytes]:
    """``path`` open for reading. Raises: DataError when it is missing, no plain file, or longer than ``limit``."""
    return _opened(path, limit, DataError)


def read_bounded(path: Path, limit: int, fault: type[ModelError] | type[DataError] = ModelError) -> bytes:
    """The bytes of ``path``. Raises: ``fault`` when it is missing, no plain file, or longer than ``limit``."""
    try:
        with _opened(path, limit, fault) as file:
            data = file.read(limit + 1)
    except OSError as refused:
        raise fault(f"{path}: {refused.strerror or refused}", hint="is the disk whole?") from refused
    if len(data) > limit:  # it grew
        raise fault(f"{path} is longer than {limit} bytes", hint="give a smaller file")
    return data


def open_unfollowed(name: str, folder: int) -> int:
    """A handle of a regular file in the directory ``folder`` that has no other name. Raises: OSError, DataError.

    No link is followed, nothing is waited for: for directories that others write in.
    """
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=folder)
    if not is_plain(os.fstat(handle)):
        os.close(handle)
        raise DataError(f"{name} is no plain file", hint="no folder, no link, no pipe, and no second name")
    return handle


def is_plain(about: os.stat_result) -> bool:
    """True for a regular file that has no second name."""
    return stat.S_ISREG(about.st_mode) and about.st_nlink == 1


def is_leftover(name: str) -> bool:
    """Is this a hidden file, or one that a system leaves in the folders that it shows?"""
    return name.startswith(".") or name.lower() in LEFTOVERS


def _opened(path: Path, limit: int, fault: type[ModelError] | type[DataError]) -> IO[bytes]:
    try:
        if path.exists() and not path.is_file():  # opening a device may do something
            raise fault(f"{path} is no file", hint="give the path of a file")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)  # a pipe may come meanwhile
    except (OSError, ValueError) as refused:  # ValueError: a zero byte in the path
        raise fault(f"{path}: {getattr(refused, 'strerror', None) or refused}", hint="is the path right?") from refused
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode) or state.st_size > limit:
        os.close(handle)
        if stat.S_ISREG(state.st_mode):
            raise fault(f"{path} is longer than {limit} bytes", hint="give a smaller file")
        raise fault(f"{path} is no file", hint="give the path of a file")
    return os.fdopen(handle, "rb")


def read_private(path: Path) -> bytes:
    """A secret. Raises: ConfigError when others may read it or own it; EnvironmentFault when it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as cause:
        raise EnvironmentFault(f"cannot read {path}: {cause.strerror}") from cause
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise ConfigError(f"{path} has mode {mode:04o}; a secret has 0600", hint=f"chmod 600 {path}")
        if found.st_uid != os.geteuid():
            raise ConfigError(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}", hint=f"chown {path}")
        return file.read()


def sha256(file: IO[bytes], size: int | None = None, out: Sink | None = None) -> bytes:
    """SHA-256 of what follows in ``file``: the next ``size`` bytes, or all that there are; they go to ``out``, too."""
    found = hashlib.sha256()
    while piece := file.read(_PIECE if size is None else min(size, _PIECE)):
        found.update(piece)
        if size is not None:
            size -= len(piece)
        if out is not None:
            out.write(piece)
    return found.digest()


def check_writable(path: Path) -> None:
    """Raises: EnvironmentFault when no file could be written at ``path``. Asked before long work; changes nothing."""
    if path.is_dir():
        raise EnvironmentFault(f"{path} is a directory", hint="give the path of a file")
    if not path.parent.is_dir():
        raise EnvironmentFault(f"{path.parent} is no directory", hint="make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"{path.parent} cannot be written", hint="choose another place or change its rights")


def write_atomic(path: Path, data: bytes, mode: int | None = None) -> None:
    """Put ``data`` at ``path`` as a whole, on the disk when this returns; ``mode`` None: as the umask says.

    Raises: EnvironmentFault; what stood there before then still stands. Source: docs/failures.md: a temporary file,
    fsync, rename, fsync of the directory lost nothing in 15 power cuts, overwriting lost 6 of 15.
    """
    with written(path, mode) as file:
        file.write(data)


@contextlib.contextmanager
def written(path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """As ``write_atomic``, a piece at a time: the file stands at ``path`` once the block has ended well."""
    draft = path.with_name(f".{path.name[:100]}.{os.getpid()}.part")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(handle, 0o644 & ~_umask() if mode is None else mode)
            os.fsync(handle)
        draft.replace(path)
        sync_directory(path.parent)
    except OSError as refused:
        raise disks.fault_of(refused.errno, path, f"{path} cannot be written") from refused
    finally:
        draft.unlink(missing_ok=True)


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    """Write what differs of two texts of one length into the file itself, on the disk when this returns.

    Not a new file in its place: the old blocks would keep the secret, and on FAT a cut between the sectors of directory
    and table could lose both. Here each sector is the old or the new one. Raises: OSError.
    """
    assert len(old) == len(new)
    differing = [at for at in range(len(old)) if old[at] != new[at]]
    if not differing:
        return
    first, last = differing[0], differing[-1] + 1
    handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.pwrite(handle, new[first:last], first)
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` durable: the rename itself lives in the directory."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
