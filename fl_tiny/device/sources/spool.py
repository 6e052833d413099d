# SPDX-License-Identifier: Apache-2.0
"""A directory that programs drop files of samples into: which are there, with which label; taken, or put aside.

A program writes under a name that begins with a dot, or elsewhere on the same filesystem, and then renames: what has
its name is whole. Programs may write in every folder here, so nothing is reached by a path that they could bend:
folders and files are opened without following links, and files are named relative to an open folder.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.files import is_leftover, is_plain, open_unfollowed

REJECTED = "rejected"
SIDECAR, REASON = ".label", ".reason"
MAX_BYTES = 64 << 20  # of a file; larger ones are for `samples add`
MAX_SEEN = 4096  # entries of a folder that one look takes in
MAX_REJECTED = 100  # files put aside; the oldest goes
RIGHTS = "folders of the spool are for the group fl-tiny: chmod 2770"
MAX_LABEL = 192  # bytes: 48 characters of four


@dataclass(frozen=True, slots=True)
class Dropped:
    """A file of the spool. folder: where it lies, empty: at the top.   once: which file it is.

    label: by its folder or its sidecar, None: the file may say it.   removable: False for one that would be learnt
    again and again, because it cannot be removed.
    """

    spool: Path
    folder: str
    name: str
    label: str | None
    once: str
    fault: str = ""
    removable: bool = True

    @property
    def path(self) -> Path:
        """Its path, for messages."""
        return self.spool / self.folder / self.name


def dropped(spool: Path) -> Iterator[Dropped]:
    """Files that are there: first those at the top, then those in folders of labels. Raises: EnvironmentFault."""
    folders = []
    with _open(spool) as top:
        for name in _names(spool, top):
            if _is_folder(top, name):
                folders.append(name)
            elif name != REJECTED and not name.endswith(SIDECAR) and (found := _looked_at(spool, "", top, name)):
                yield found
    for folder in folders:
        if folder != REJECTED:
            with contextlib.suppress(EnvironmentFault), _open(spool, folder) as place:  # it is gone, or not for us
                for name in _names(spool / folder, place):
                    if not name.endswith(SIDECAR) and (found := _looked_at(spool, folder, place, name)):
                        yield found


@contextlib.contextmanager
def opened(spool: Path, folder: str, name: str, once: str) -> Iterator[int]:
    """A handle of the file that was looked at. Raises: DataError when another stands in its place."""
    with _open(spool, folder) as place:
        try:
            handle = open_unfollowed(name, place)
        except OSError as fault:
            raise DataError(f"{name}: {fault.strerror}") from fault
        try:
            if _once(os.fstat(handle)) != once:
                raise DataError(f"{name} changed while it was looked at", hint="write under another name, then rename")
            yield handle
        finally:
            os.close(handle)


def remove(found: Dropped) -> None:
    """The sample is on the disk: the file goes, and its sidecar. Raises: EnvironmentFault."""
    with _open(found.spool, found.folder) as place:
        try:
            _unlink(found.name, place)
            _unlink(found.name + SIDECAR, place)
            os.fsync(place)
        except OSError as fault:
            raise EnvironmentFault(f"{found.path} cannot be removed: {fault.strerror}", hint=RIGHTS) from fault


def reject(found: Dropped, why: str) -> None:
    """Put a file aside, with the reason beside it; the oldest such files go. Raises: EnvironmentFault."""
    with contextlib.suppress(OSError), _open(found.spool) as top:
        if _is_there(top, REJECTED) and not _is_folder(top, REJECTED):  # a link: it may stay, under another name
            os.rename(REJECTED, f".{REJECTED}-{secrets.token_hex(8)}", src_dir_fd=top, dst_dir_fd=top)
        os.mkdir(REJECTED, 0o2770, dir_fd=top)
    with _open(found.spool, found.folder) as place, _open(found.spool, REJECTED) as aside:
        try:
            _make_room(aside)
            name = found.name[-100:]
            if _is_there(aside, name) or _is_there(aside, name + REASON):
                name = f"{secrets.token_hex(8)}-{name}"
            os.rename(found.name, name, src_dir_fd=place, dst_dir_fd=aside)
            with contextlib.suppress(OSError):  # the log has it too
                _unlink(found.name + SIDECAR, place)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(name + REASON, flags, 0o660, dir_fd=aside), "wb") as file:
                    file.write(why[:1000].encode("utf-8", "backslashreplace") + b"\n")
        except OSError as fault:
            raise EnvironmentFault(f"{found.path} cannot be put aside: {fault.strerror}", hint=RIGHTS) from fault


@contextlib.contextmanager
def _open(spool: Path, folder: str = "") -> Iterator[int]:
    """A handle of the spool, or of one of its folders, no link. Raises: EnvironmentFault."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        handle = os.open(spool, flags)
        if folder:
            top = handle
            try:
                handle = os.open(folder, flags | os.O_NOFOLLOW, dir_fd=top)
            finally:
                os.close(top)
    except OSError as fault:
        hint = "is it there, no link, and its group fl-tiny?"
        raise EnvironmentFault(f"{spool / folder}: {fault.strerror}", hint=hint) from fault
    try:
        yield handle
    finally:
        os.close(handle)


def _names(path: Path, place: int) -> list[str]:
    """What is in a folder, hidden names and leftovers left out, in the order of names; a part of very many."""
    found: list[str] = []
    try:
        with os.scandir(place) as entries:
            for entry in itertools.islice(entries, 4 * MAX_SEEN):
                if not is_leftover(entry.name):
                    found.append(entry.name)
                if len(found) >= MAX_SEEN:
                    break
    except OSError as fault:
        raise EnvironmentFault(f"{path}: {fault.strerror}", hint=RIGHTS) from fault
    return sorted(found)


def _looked_at(spool: Path, folder: str, place: int, name: str) -> Dropped | None:
    """A file with what can be said of it before anything of it is read; None: it is gone."""
    label = folder or None
    try:
        about = os.stat(name, dir_fd=place, follow_symlinks=False)
    except OSError:
        return None
    once, removable = _once(about), _is_removable(place, about)
    try:
        if not is_plain(about):
            return Dropped(spool, folder, name, label, once, "it is no plain file", removable)
        if about.st_size > MAX_BYTES:
            why = f"it is longer than {MAX_BYTES} bytes; use fl-tiny samples add"
            return Dropped(spool, folder, name, label, once, why, removable)
        if label is None and _is_there(place, name + SIDECAR):
            with os.fdopen(open_unfollowed(name + SIDECAR, place), "rb") as file:
                label = file.read(MAX_LABEL + 1).decode().strip().split("\n")[0]
            if not 1 <= len(label.encode()) <= MAX_LABEL:
                return Dropped(spool, folder, name, None, once, f"{name}{SIDECAR} holds no label", removable)
    except (OSError, UnicodeDecodeError, DataError) as fault:
        return Dropped(spool, folder, name, None, once, f"it cannot be read: {fault}", removable)
    return Dropped(spool, folder, name, label, once, removable=removable)


def _once(about: os.stat_result) -> str:
    return f"{about.st_ino}:{about.st_mtime_ns}:{about.st_size}"


def _is_removable(place: int, about: os.stat_result) -> bool:
    folder = os.fstat(place)
    is_sticky = folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, folder.st_uid, about.st_uid)
    return os.access(f"/proc/self/fd/{place}", os.W_OK | os.X_OK) and not is_sticky


def _is_folder(place: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _is_there(place: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=place, follow_symlinks=False)
    except OSError:
        return False
    return True


def _unlink(name: str, place: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=place)


def _make_room(aside: int) -> None:
    """Remove the oldest of very many files; what cannot be removed, such as a folder of a program's, stays."""
    ages = []
    with os.scandir(aside) as entries:
        for entry in itertools.islice(entries, 4 * MAX_SEEN):
            if not entry.name.endswith(REASON) and not entry.is_dir(follow_symlinks=False):
                ages.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
    for _, name in sorted(ages)[: max(0, len(ages) - MAX_REJECTED + 1)]:
        with contextlib.suppress(OSError):
            _unlink(name, aside)
            _unlink(name + REASON, aside)
