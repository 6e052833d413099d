# SPDX-License-Identifier: Apache-2.0
"""What both SQLite stores do alike: open and migrate a file or refuse it, read it, copy it, write all or nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fl_tiny import disks
from fl_tiny.errors import ConfigError, Conflict, DataError, EnvironmentFault, FlTinyError

PATIENCE_S = 5.0  # for who else writes or reads
_BUSY, _LOCKED, _NOMEM, _READONLY, _IOERR, _FULL, _CANTOPEN = 5, 6, 7, 8, 10, 13, 14  # sqlite3.h
_PASSING = frozenset({_BUSY, _LOCKED, _NOMEM, _READONLY, _IOERR, _FULL, _CANTOPEN})  # say nothing about the file
_WORDS = {  # Python 3.10 gives no codes; sqlite3ErrStr
    "locked": _BUSY,
    "out of memory": _NOMEM,
    "readonly": _READONLY,
    "I/O": _IOERR,
    "full": _FULL,
    "unable to open": _CANTOPEN,
}
_CORRUPT, _NOTADB = 11, 26
_REPAIRED = ((3, 44, 6), (3, 50, 7))  # and what follows each with the same first two numbers
_SOUND = (3, 51, 3)


_text = functools.partial(str, encoding="utf-8", errors="replace")  # damage in one name stops nothing


class Connection(sqlite3.Connection):
    """A connection that may hold a lock of the database's folder until it is closed."""

    lock: int | None = None

    def close(self) -> None:
        """Close it, and give the lock back."""
        super().close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def sqlite_version() -> str:
    """The version of the library that is loaded."""
    return sqlite3.sqlite_version


def resets_safely(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """True when SQLite notices a log that is reset during a checkpoint. Source: sqlite.org/wal.html#walresetbug."""
    return version >= _SOUND or any(version[:2] == fixed[:2] and version >= fixed for fixed in _REPAIRED)


@contextlib.contextmanager
def writing(db: sqlite3.Connection, what: str) -> Iterator[None]:
    """Hold the one lock of this database's writers: no commit and no checkpoint of ours overlaps another one.

    docs/adr/0066-one-writer-at-a-time.md says why. what: the thing written, for the message.
    Raises: EnvironmentFault for a full disk, a lock of five seconds or an I/O error; DataError for a damaged file;
    Conflict for a row that a constraint of the tables forbids.
    """
    path = Path(db.execute("PRAGMA database_list").fetchone()[2])
    lock = _lock_of(path.parent, fcntl.LOCK_EX)
    try:
        yield
    except sqlite3.DatabaseError as cause:
        fault = fault_of(cause, path, f"the {what} could not be written")
        if fault is None and isinstance(cause, sqlite3.OperationalError):
            fault = EnvironmentFault(f"the {what} could not be written: {cause}")
        if isinstance(cause, sqlite3.IntegrityError):
            fault = Conflict(f"the {what} holds something else: {cause}")
        raise fault or cause from cause
    finally:
        os.close(lock)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, what: str, *, flushed: bool = True) -> Iterator[sqlite3.Connection]:
    """All or nothing on ``db``. what: the thing written, for the message.

    flushed: on the disk when the block ends; else, in WAL mode, with the next commit that is, or when the system gets
    to it: for what can be had again. It saves a flush, and the rest of the last block of each.
    Raises: as ``writing``; what the block raises.
    """
    with writing(db, what):
        level = 0 if flushed else db.execute("PRAGMA synchronous").fetchone()[0]
        if level:
            db.execute("PRAGMA synchronous=NORMAL")
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")  # it may run a checkpoint, after SQLite's own lock is gone
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        finally:
            if level:
                db.execute(f"PRAGMA synchronous={level}")


def connect(
    path: Path, pragmas: Sequence[str], hint: str, *, shared: bool = False, reads: int | None = None
) -> sqlite3.Connection:
    """A connection to ``path``. hint: what to do about a damaged file.   shared: other threads may use it, one a time.

    reads: it is for reading alone and writes nothing, also where nothing can be written, unless the database is older
    than this version and must be migrated first.
    Raises: DataError when the file is damaged, EnvironmentFault when it cannot be opened.
    """
    with reading(path, hint):
        if reads is not None:
            reader = _reader(path, shared)
            if _version(reader) >= reads:
                return reader
            reader.close()
        db = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_S, check_same_thread=not shared)
        db.text_factory = _text
        try:
            for pragma in pragmas:
                db.execute(f"PRAGMA {pragma}")
        except sqlite3.DatabaseError:
            db.close()
            raise
    return db


def create(db: sqlite3.Connection, schema: str, version: int) -> None:
    """Give a new, empty database its tables; one that has any is left as it is."""
    with transaction(db, "new database"):
        if _version(db) == 0:
            _run(db, schema, version)


def migrate(db: sqlite3.Connection, path: Path, steps: Mapping[int, str], newest: int, hint: str) -> None:
    """Bring an older database to version ``newest``, a step at a time, each all or nothing; closed when refused.

    steps: from a version to the next, as SQL.   hint: what to do about a damaged file.
    Raises: ConfigError for a file of a newer fl-tiny; DataError for a damaged one; EnvironmentFault.
    """
    try:
        _migrate(db, path, steps, newest, hint)
    except FlTinyError:
        db.close()
        raise


@contextlib.contextmanager
def reading(path: Path, hint: str) -> Iterator[None]:
    """SQLite's errors in the block as ours. Raises: DataError when ``path`` is damaged; EnvironmentFault."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as cause:  # the latter: a message that quotes damaged names
        fault = fault_of(cause, path, f"{path} cannot be read")
        if isinstance(fault, EnvironmentFault):
            raise fault from cause
        raise DataError(f"{path} is damaged: {cause}", hint=hint) from cause


def fault_of(cause: Exception, path: Path, what: str) -> FlTinyError | None:
    """SQLite's error as ours; None for what is neither the machine's nor the file's, such as a constraint.

    path: the database.   what: the operation, as ``the state could not be written``.
    """
    code = _code(cause)
    if code in (_CORRUPT, _NOTADB):
        return DataError(f"{what}: the database is damaged: {cause}", "fl-tiny device doctor or gateway doctor, on DIR")
    if code not in _PASSING:
        return None
    if code in (_BUSY, _LOCKED):
        return EnvironmentFault(f"{what}: another process has held the database for {PATIENCE_S:.0f} s")
    state = errno.ENOSPC if code == _FULL else disks.state_of(path)
    if state == 0 and code == _IOERR:
        state = errno.EIO
    if state == 0 or code == _NOMEM:
        return EnvironmentFault(f"{what}: {cause}")
    return disks.fault_of(state, path, what)


def copy(db: sqlite3.Connection, path: Path) -> None:
    """The database as one transaction left it, at ``path``, which is an empty file; writers go on meanwhile."""
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as target:
            db.backup(target)  # one step is one read transaction: in WAL mode it holds no writer up
    except sqlite3.DatabaseError as cause:
        raise fault_of(cause, path, f"{path}: the database could not be copied") or cause from cause


def _reader(path: Path, shared: bool) -> Connection:
    """A connection that writes nothing.

    An ordinary one wants room for its -shm. Without room, the file is read as it lies when there is no log; a log is
    indexed in memory, be it by SQLite's own way for a -shm that nobody may write, or, without one, by an exclusive mode
    that locks nothing. The lock that writers want is held meanwhile: they have no room either.
    Source: sqlite.org/wal.html, "Read-Only Databases", "Use of WAL Without Shared-Memory"; sqlite.org/vfs.html.
    """
    try:
        return _opened(path, "mode=rw", shared)
    except sqlite3.OperationalError as cause:
        if _code(cause) not in (_IOERR, _CANTOPEN, _READONLY, _FULL):
            raise
    lock = _lock_of(path.parent, fcntl.LOCK_SH)
    try:
        log, index = (_size(path.with_name(f"{path.name}{suffix}")) for suffix in ("-wal", "-shm"))
        how = ("readonly_shm=1" if index else "vfs=unix-none") if log else "immutable=1"
        db = _opened(path, f"mode=ro&{how}", shared)
        db.lock = lock
        return db
    except BaseException:
        os.close(lock)
        raise


def _opened(path: Path, how: str, shared: bool) -> Connection:
    uri = f"file:{urllib.parse.quote(str(path.absolute()))}?{how}"
    db = sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=PATIENCE_S, check_same_thread=not shared, factory=Connection
    )
    db.text_factory = _text
    try:
        if "unix-none" in how:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA query_only=ON")
        db.execute("PRAGMA trusted_schema=OFF")
        _version(db)
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _lock_of(folder: Path, kind: int) -> int:
    """A handle of ``folder`` that holds its lock: no file to make, nor to write, on a full disk. Source: flock(2)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    end, pause = time.monotonic() + PATIENCE_S, 0.001
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return handle
        except BlockingIOError as cause:
            if time.monotonic() > end:
                os.close(handle)
                raise EnvironmentFault(f"another process has written in {folder} for {PATIENCE_S:.0f} s") from cause
        time.sleep(pause)
        pause = min(2 * pause, 0.005)  # short: who commits one thing after another leaves little time in between


def _code(cause: Exception) -> int:
    """SQLite's primary result code; 0 for what is not SQLite's."""
    if not isinstance(cause, sqlite3.Error):
        return 0
    code: int | None = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF
    return next((number for words, number in _WORDS.items() if words in str(cause)), 0)


def _migrate(db: sqlite3.Connection, path: Path, steps: Mapping[int, str], newest: int, hint: str) -> None:
    with reading(path, hint):
        while (found := _version(db)) in steps:
            with transaction(db, "database's new form"):
                if _version(db) == found:  # else another process was quicker
                    _run(db, steps[found], found + 1)
    if found > newest:
        raise ConfigError(
            f"{path} has version {found}, this fl-tiny reads {newest} at most", hint="install a newer fl-tiny"
        )
    if found != newest:
        raise DataError(f"{path} has no tables of fl-tiny", hint=hint)


def _run(db: sqlite3.Connection, statements: str, version: int) -> None:
    for statement in filter(str.strip, statements.split(";")):
        db.execute(statement)
    db.execute(f"PRAGMA user_version={version}")


def _version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found
