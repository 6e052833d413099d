# SPDX-License-Identifier: Apache-2.0
"""A bundle into the other slot: taken where nobody else can change it, judged, installed by RAUC, its end noted."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_tiny.device import host
from fl_tiny.device.bootfiles import BootFiles
from fl_tiny.device.bootstate import Phase
from fl_tiny.device.download import download
from fl_tiny.device.machine import UPDATE, Machine, Record, has_reached
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault, FlTinyError
from fl_tiny.files import open_plain, open_unfollowed, read_bounded
from fl_tiny.protocol.codepoints import Code
from fl_tiny.protocol.fields import cut_text
from fl_tiny.protocol.release import WHY_BYTES, Release, read_release

log = logging.getLogger(__name__)

BUNDLE_LIMIT = 1 << 30  # bytes
SUFFIX = ".raucb"
OFFERED_BY_HAND = ""

Say = Callable[[str, int], None]  # what is done, percent


@dataclass(frozen=True, slots=True)
class Installed:
    """A release that is in the other slot now, to be tried at the next start."""

    release: Release
    slot: str


def update(machine: Machine, directory: Path, source: str, say: Say) -> Installed | None:
    """Install ``source``: a file, an address, or DIR, for what its daemon has fetched; None: it has fetched nothing.

    Raises: DataError for a bundle that is refused, ConfigError during a try or without slots, EnvironmentFault.
    """
    files = boot_files(machine)
    if not machine.rauc_config.exists():
        raise ConfigError("this system has no slots to update", hint=f"{machine.rauc_config} says where they are")
    if files.phase() is Phase.TRYING:
        raise ConfigError(f"slot {files.booted} is being tried", hint="it is confirmed or left within minutes")
    machine.work.mkdir(mode=0o755, parents=True, exist_ok=True)
    name = OFFERED_BY_HAND
    if source.lower().startswith(("http://", "https://")):
        taken = machine.work / (hashlib.sha256(source.encode()).hexdigest()[:16] + SUFFIX)
        download(source, taken, BUNDLE_LIMIT, lambda done, total: say("downloaded", 100 * done // max(total, done, 1)))
        bundle: Path | None = taken
    elif Path(source).is_dir():
        bundle = _fetched(machine, Path(source))
        name = bundle.name.removesuffix(SUFFIX) if bundle else name
    else:
        bundle = Path(source)
    if bundle is None:
        return None
    try:
        return _install(machine, files, bundle, name, has_reached(directory, machine), say)
    finally:
        if bundle.parent == machine.work:
            bundle.unlink(missing_ok=True)


def boot_files(machine: Machine) -> BootFiles:
    """This board's boot state; its partition is writable for the moment of a change."""
    return BootFiles(machine.boot, machine.booted(), host.writable)


def judge(machine: Machine, offered: Release) -> None:
    """Raises: DataError when ``offered`` is for another board, or older than what runs."""
    running = machine.release()
    if running is None:
        raise EnvironmentFault("nobody knows which release runs here", hint="/etc/fl-tiny-release should say so")
    if offered.board != running.board:
        raise DataError(f"a bundle for {offered.board}, and this is {running.board}", code=Code.CONFLICT)
    if offered.rank < running.rank:
        raise DataError(f"release {offered.number} is older than {running.number}, which runs", code=Code.DOWNGRADE)


def judge_contents(machine: Machine, file: Path) -> None:
    """As ``judge``, of the release file inside a bundle that RAUC has verified and mounted."""
    judge(machine, read_release(read_bounded(file, 4096, DataError).decode("utf-8", "replace")))


def _install(machine: Machine, files: BootFiles, bundle: Path, name: str, reached: bool, say: Say) -> Installed:
    number = ""
    try:
        open_plain(bundle, BUNDLE_LIMIT).close()
        offered = host.info(bundle, machine.rauc_config)
        number = offered.number
        judge(machine, offered)
        host.install(bundle, lambda percent, done: say(done, percent))
    except FlTinyError as fault:
        log.warning("bundle refused name=%s release=%s why=%r", name, number, fault.what)
        machine.keep(
            Record(name, number, "refused", False, fault.code or Code.CONFLICT, cut_text(fault.what, WHY_BYTES))
        )
        raise
    slot = files.next()
    machine.keep(Record(name, number, "installed", reached))
    log.info("bundle installed release=%s slot=%s", number, slot)
    return Installed(offered, slot)


def _fetched(machine: Machine, directory: Path) -> Path | None:
    """A bundle that the daemon of DIR has fetched, moved where only root can change it; nothing else keeps its name.

    Raises: DataError when what is there is no bundle's file: it is called otherwise then, and sticks nobody.
    """
    try:
        folder = os.open(directory / UPDATE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    work = os.open(machine.work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(SUFFIX))
        taken, refused = None, ""
        for name in names:
            if taken is None and _is_bundle(folder, name):
                if (machine.work / name).is_dir():
                    _put_away(work, name)
                os.rename(name, name, src_dir_fd=folder, dst_dir_fd=work)
                if _is_made_ours(work, name):
                    taken = machine.work / name
                    continue
                _put_away(work, name)
            refused = refused or name
            _put_away(folder, name)
    except OSError as fault:
        raise EnvironmentFault(f"{directory / UPDATE}: {fault.strerror}", hint="is the disk whole?") from fault
    finally:
        os.close(folder)
        os.close(work)
    if taken is None and refused:
        raise DataError(f"{directory / UPDATE / refused} is no plain file", hint="it is called .refused-… there now")
    return taken


def _is_bundle(folder: int, name: str) -> bool:
    """True for a plain file without a second name that belongs to the folder's owner or to us."""
    try:
        handle = open_unfollowed(name, folder)
    except (OSError, DataError):
        return False
    try:
        return os.fstat(handle).st_uid in (os.fstat(folder).st_uid, os.geteuid())
    finally:
        os.close(handle)


def _put_away(folder: int, name: str) -> None:
    """Give whatever has this name another one: a rename follows nothing, and takes no time."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(name, f".refused-{secrets.token_hex(8)}", src_dir_fd=folder, dst_dir_fd=folder)


def _is_made_ours(work: int, name: str) -> bool:
    """Take a moved file over. True when it is a plain file still; another may have stood there meanwhile."""
    try:
        handle = open_unfollowed(name, work)
    except (OSError, DataError):
        return False
    try:
        os.fchown(handle, os.geteuid(), os.getegid())
        os.fchmod(handle, 0o600)
        return True
    finally:
        os.close(handle)
