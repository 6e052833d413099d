# SPDX-License-Identifier: Apache-2.0
"""A whole gateway in one file, and a gateway from such a file: ledger, keys, model and settings.

The file is three lines and the members behind one another: what it is, SHA-256 of the third line, and a JSON object
that names each member with its size and SHA-256. So every byte of it is checked before anything is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from fl_tiny import statedir
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault
from fl_tiny.files import check_writable, open_plain, sha256, sync_directory, written
from fl_tiny.gateway import keys, sealed
from fl_tiny.gateway.keys import GATEWAY_KEY, NEW_KEY
from fl_tiny.gateway.manifests import MODEL_LIMIT
from fl_tiny.gateway.models import BASE, model_data
from fl_tiny.gateway.store import Store
from fl_tiny.protocol import signed, wire

MAGIC = b"fl-tiny gateway backup 1\n"
INDEX_LIMIT = 64 << 10
MEMBERS = 64
MEMBER_LIMIT = 16 << 30  # bytes of a ledger; with FILE_LIMIT what a mistaken file may cost to read
FILE_LIMIT = 20 << 30
NAME = re.compile(r"state\.db|fl-tiny\.toml|(secret|model)/[A-Za-z0-9_-][A-Za-z0-9._-]{0,100}")
KEYS = {f"{statedir.SECRET}/{name}" for name in (GATEWAY_KEY, NEW_KEY)}
AGAIN = "take another backup; this one was damaged or cut short"


@dataclass(frozen=True, slots=True)
class Member:
    """A file of DIR as a backup holds it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds. head, epoch: of the head published last."""

    head: int
    epoch: int
    devices: int
    members: tuple[Member, ...]


def write(directory: Path, out: Path, to: bytes | None = None) -> Backup:
    """Put DIR's state as of now into ``out``, mode 0600, all or nothing; a gateway may run in DIR meanwhile.

    to: the public half of the key that it is sealed for; None: whoever has the file can read it.
    Raises: ConfigError, DataError when DIR is no sound gateway; EnvironmentFault when ``out`` cannot be written.
    """
    store = Store.open(directory / statedir.DATABASE, reading=True)
    check_writable(out)
    draft = (directory / out.name if to else out).with_name(f".{out.name[:100]}.{os.getpid()}.db")
    try:
        draft.touch(mode=0o600, exist_ok=False)
        store.copy_to(draft)
        found = _found(directory, draft, [*_files(directory), (statedir.DATABASE, draft)])
        index = json.dumps(_to_json(found)).encode()
        with written(out, 0o600) as plain:
            file = sealed.Writer(plain, to) if to else plain
            file.write(MAGIC + hashlib.sha256(index).hexdigest().encode() + b"\n" + index + b"\n")
            for member in found.members:
                source = draft if member.name == statedir.DATABASE else directory / member.name
                with source.open("rb") as part:
                    if sha256(part, member.size, file).hex() != member.sha256:
                        raise EnvironmentFault(f"{source} changed while it was copied", hint="give the command again")
            if isinstance(file, sealed.Writer):
                file.close()
        return found
    finally:
        store.close()
        for left in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            left.unlink(missing_ok=True)


def check(file: IO[bytes], name: Path) -> Backup:
    """Read a backup to its end; the file then stands behind its index. Raises: DataError, naming what is damaged."""
    file.seek(0)
    if file.readline(len(MAGIC)) != MAGIC:
        raise DataError(f"{name} is no backup of a gateway", hint="fl-tiny gateway backup DIR --out F writes one")
    digest, index = file.readline(66), file.readline(INDEX_LIMIT)
    if not index.endswith(b"\n") or hashlib.sha256(index[:-1]).hexdigest().encode() + b"\n" != digest:
        raise DataError(f"{name}: the index is damaged", hint=AGAIN)
    found, start = _from_json(index, name), file.tell()
    for member in found.members:
        if sha256(file, member.size).hex() != member.sha256:
            raise DataError(f"{name}: {member.name} is damaged", hint=AGAIN)
    if file.read(1):
        raise DataError(f"{name}: bytes behind the last member", hint=AGAIN)
    file.seek(start)
    return found


def restore(directory: Path, source: Path, epoch: int | None = None, secret: bytes | None = None) -> Backup:
    """Make DIR, which is not there or empty, the gateway that ``source`` holds, its heads of a new epoch.

    epoch: of the restored gateway; None: one above the backup's.   secret: the private half of the key that ``source``
    is sealed for; None: it is not. Returns what DIR then holds.
    Raises: DataError when ``source`` is damaged; ConfigError when DIR is in use or the epoch is not higher.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is in use: it is not empty", hint="restore into a new directory")
    with open_plain(source, FILE_LIMIT) as stored, _opened(stored, source, secret) as file:
        found = check(file, source)
        raised = found.epoch + 1 if epoch is None else epoch
        if not found.epoch < raised <= wire.U32:
            raise ConfigError(f"epoch {raised} is not above the backup's, {found.epoch}")
        made = not directory.exists()
        if not made:  # not before: the backup may be readable by root alone
            statedir.act_as_owner(directory)
        try:
            statedir.create(directory)
            with statedir.locked(directory):
                partial = _unpack(directory, file, found)
                devices = _begin(directory, partial, raised)
                partial.rename(directory / statedir.DATABASE)
                sync_directory(directory)
        except BaseException:
            _clear(directory, made)
            raise
    return replace(found, epoch=raised, devices=devices)


def _opened(stored: IO[bytes], name: Path, secret: bytes | None) -> IO[bytes]:
    """The backup in a file, sealed or not. Raises: ConfigError when a key lacks or is too many; DataError."""
    is_sealed = stored.read(len(sealed.MAGIC)) == sealed.MAGIC
    if is_sealed and secret is None:
        raise ConfigError(f"{name} is sealed", hint=f"add --key FILE, the {sealed.SECRET_FILE} of `fleet backup-key`")
    if secret is None:
        return stored
    if not is_sealed:
        raise DataError(
            f"{name} is not sealed, so this key cannot vouch for it", hint="without --key, if that is meant"
        )
    return io.BufferedReader(sealed.Reader(stored, secret, name), sealed.PIECE)


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of what belongs to DIR's gateway beside its ledger."""
    for pattern in (statedir.SETTINGS, f"{statedir.SECRET}/*", f"{statedir.MODEL}/*"):
        for path in sorted(directory.glob(pattern)):
            name = path.relative_to(directory).as_posix()
            if NAME.fullmatch(name) and path.is_file() and not path.is_symlink():
                yield name, path


def _found(directory: Path, database: Path, files: list[tuple[str, Path]]) -> Backup:
    members = []
    for name, path in files:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            members.append(Member(name, size, sha256(file, size).hex()))
    copied = Store.open(database)
    try:
        faults = copied.faults()
        if faults:
            raise DataError("the ledger is not sound: " + "; ".join(faults), hint="an earlier backup may be")
        if not any(_is_key(path, copied.get("gateway_pk")) for name, path in files if name in KEYS):
            what = f"{directory / statedir.SECRET / GATEWAY_KEY} is not the key of this gateway's ledger"
            raise DataError(what, hint="give the command again if `gateway rekey` ran; else an earlier backup has it")
        return Backup(copied.head().number, copied.epoch or 0, len(copied.devices()), tuple(members))
    finally:
        copied.close()


def _is_key(path: Path, pk: bytes) -> bool:
    """Does a file hold the secret half of ``pk``? Root may ask it of another's file."""
    seed = path.read_bytes()
    return len(seed) == signed.SEED_BYTES and signed.public_key(seed) == pk


def _to_json(found: Backup) -> dict[str, Any]:
    members = [{"name": m.name, "size": m.size, "sha256": m.sha256} for m in found.members]
    return {"head": found.head, "epoch": found.epoch, "devices": found.devices, "members": members}


def _from_json(text: bytes, name: Path) -> Backup:
    try:
        index = json.loads(text)
        members = tuple(Member(str(m["name"]), int(m["size"]), str(m["sha256"])) for m in index["members"])
        found = Backup(int(index["head"]), int(index["epoch"]), int(index["devices"]), members)
    except (KeyError, TypeError, ValueError, RecursionError) as cause:
        raise DataError(f"{name}: the index is not one of this version: {cause!r}", hint=AGAIN) from cause
    names = [member.name for member in members]
    odd = [n for n in names if not NAME.fullmatch(n)]
    if odd or len(set(names)) != len(names) or len(names) > MEMBERS:
        raise DataError(f"{name}: members that no gateway has: {', '.join(odd) or len(names)}")
    if any(not 0 <= m.size <= (MEMBER_LIMIT if m.name == statedir.DATABASE else MODEL_LIMIT) for m in members):
        raise DataError(f"{name}: a member is larger than a gateway takes")
    lacking = {statedir.DATABASE, f"{statedir.SECRET}/{GATEWAY_KEY}", f"{statedir.MODEL}/{BASE}"} - set(names)
    if lacking:
        raise DataError(f"{name}: without {', '.join(sorted(lacking))}", hint=AGAIN)
    return found


def _unpack(directory: Path, file: IO[bytes], found: Backup) -> Path:
    """Write the members below DIR; the ledger's path, which does not have its name yet."""
    partial = directory / f".{statedir.DATABASE}.new"
    for member in found.members:
        is_model = member.name.startswith(f"{statedir.MODEL}/")
        target = partial if member.name == statedir.DATABASE else directory / member.name
        with written(target, 0o640 if is_model else 0o600) as out:
            sha256(file, member.size, out)
    return partial


def _begin(directory: Path, database: Path, epoch: int) -> int:
    """Raise the ledger's epoch and sign its head anew; how many devices it knows. Raises: DataError."""
    store = Store.open(database)
    try:
        faults = store.faults()
        if faults:
            raise DataError("the backup's ledger is not sound: " + "; ".join(faults), hint=AGAIN)
        keys.finish(directory, store)
        try:
            seed = keys.seed_of(directory, store)
        except DataError as fault:
            raise DataError("the backup's key is of another gateway than its ledger", hint=AGAIN) from fault
        manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
        model = hashlib.sha256(model_data(store, directory)).digest()
        if model != manifest.digest:
            raise DataError("the backup's model is of another gateway than its ledger", hint=AGAIN)
        head = wire.decode(wire.Head, signed.payload_of(store.head().signed))
        store.begin_epoch(epoch, signed.sign(wire.encode(replace(head, epoch=epoch)), seed))
        return len(store.devices())
    finally:
        store.close()


def _clear(directory: Path, made: bool) -> None:
    """Leave DIR as it was before: it was empty, or not there."""
    for path in list(directory.iterdir()) if directory.is_dir() else []:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if made and directory.is_dir():
        directory.rmdir()
