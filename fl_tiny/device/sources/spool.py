# SPDX-License-Identifier: Apache-2.0
"""A directory that programs drop files of samples into: which are there, with which label; taken, or put aside.

A program writes under a name that begins with a dot, or elsewhere on the same filesystem, and then renames: what has
its name is whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_tiny.errors import EnvironmentFault
from fl_tiny.files import sync_directory

REJECTED = "rejected"
SIDECAR, REASON = ".label", ".reason"
MAX_BYTES = 64 << 20  # of a file; larger ones are for `samples add`
MAX_SEEN = 4096  # entries of a folder that one look takes in
MAX_REJECTED = 100  # files put aside; the oldest goes
RIGHTS = "folders of the spool are for the group fl-tiny: chmod 2770"
MAX_LABEL = 192  # bytes: 48 characters of four


@dataclass(frozen=True, slots=True)
class Dropped:
    """A file of the spool. label: by its folder or its sidecar, None: the file may say it.   once: which file it is."""

    path: Path
    label: str | None
    once: str
    fault: str = ""

    @property
    def removable(self) -> bool:
        """May it be removed? If not it must not be learnt either, or it would be again and again."""
        return os.access(self.path.parent, os.W_OK | os.X_OK)


def dropped(spool: Path) -> Iterator[Dropped]:
    """Files that are there: first those at the top, then those in folders of labels."""
    folders = []
    for path in _entries(spool):
        if path.is_dir() and not path.is_symlink():
            folders.append(path)
        elif path.suffix != SIDECAR:
            yield _looked_at(path, None)
    for folder in folders:
        if folder != spool / REJECTED:
            yield from (_looked_at(path, folder.name) for path in _entries(folder) if path.suffix != SIDECAR)


def remove(found: Dropped) -> None:
    """The sample is on the disk: the file goes, and its sidecar. Raises: EnvironmentFault."""
    try:
        found.path.unlink(missing_ok=True)
        _sidecar(found.path).unlink(missing_ok=True)
        sync_directory(found.path.parent)
    except OSError as fault:
        raise EnvironmentFault(f"{found.path} cannot be removed: {fault.strerror}", hint=RIGHTS) from fault


def reject(spool: Path, found: Dropped, why: str) -> None:
    """Put a file aside, with the reason beside it; the oldest such files go. Raises: EnvironmentFault."""
    aside = spool / REJECTED
    try:
        aside.mkdir(mode=0o2770, exist_ok=True)
        kept = sorted((p for p in _entries(aside) if p.suffix != REASON), key=lambda p: p.lstat().st_mtime_ns)
        for old in kept[: max(0, len(kept) - MAX_REJECTED + 1)]:
            old.unlink(missing_ok=True)
            old.with_name(old.name + REASON).unlink(missing_ok=True)
        name = found.path.name[-150:]
        (aside / (name + REASON)).write_text(why[:1000] + "\n")
        found.path.replace(aside / name)
        _sidecar(found.path).unlink(missing_ok=True)
    except OSError as fault:
        raise EnvironmentFault(f"{found.path} cannot be put aside: {fault.strerror}", hint=RIGHTS) from fault


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, hidden names left out, in the order of names; a part of very many."""
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    found.append(entry.name)
                if len(found) >= MAX_SEEN:
                    break
    except OSError as fault:
        raise EnvironmentFault(f"{folder}: {fault.strerror}", hint="is it there, and its group fl-tiny?") from fault
    return [folder / name for name in sorted(found)]


def _looked_at(path: Path, label: str | None) -> Dropped:
    """A file with what can be said of it before anything of it is read."""
    try:
        about = path.lstat()
        once = f"{about.st_ino}:{about.st_mtime_ns}:{about.st_size}"
        if not stat.S_ISREG(about.st_mode):
            return Dropped(path, label, once, "it is no plain file")
        if about.st_size > MAX_BYTES:
            return Dropped(path, label, once, f"it is longer than {MAX_BYTES} bytes; use fl-tiny samples add")
        side = _sidecar(path)
        if label is None and side.is_file() and not side.is_symlink():
            with side.open("rb") as file:
                label = file.read(MAX_LABEL + 1).decode().strip().split("\n")[0]
            if not 1 <= len(label.encode()) <= MAX_LABEL:
                return Dropped(path, None, once, f"{side.name} holds no label")
    except (OSError, UnicodeDecodeError) as fault:
        return Dropped(path, None, "", f"it cannot be read: {fault}")
    return Dropped(path, label, once)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + SIDECAR)
