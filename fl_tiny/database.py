# SPDX-License-Identifier: Apache-2.0
"""What both SQLite stores do alike: open and migrate a file or refuse it, copy it, write all or nothing."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fl_tiny.errors import ConfigError, Conflict, DataError, EnvironmentFault, FlTinyError

# Of SQLite's messages those that say nothing about the file itself (sqlite3ErrStr; codes come with Python 3.11 only).
PASSING = ("locked", "unable to open", "I/O", "full", "readonly", "out of memory")


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, what: str, *, flushed: bool = True) -> Iterator[sqlite3.Connection]:
    """All or nothing on ``db``. what: the thing written, for the message.

    flushed: on the disk when the block ends; else, in WAL mode, with the next commit that is, or when the system gets
    to it: for what can be had again. It saves a flush, and the rest of the last block of each.
    Raises: EnvironmentFault for a full disk, a lock of five seconds or an I/O error; Conflict for a row that a
    constraint of the tables forbids; what the block raises.
    """
    level = 0 if flushed else db.execute("PRAGMA synchronous").fetchone()[0]
    if level:
        db.execute("PRAGMA synchronous=NORMAL")
    try:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except BaseException as cause:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if isinstance(cause, sqlite3.OperationalError):
            raise EnvironmentFault(f"the {what} could not be written: {cause}") from cause
        if isinstance(cause, sqlite3.IntegrityError):
            raise Conflict(f"the {what} holds something else: {cause}") from cause
        raise
    finally:
        if level:
            db.execute(f"PRAGMA synchronous={level}")


def connect(path: Path, pragmas: Sequence[str], hint: str, *, shared: bool = False) -> sqlite3.Connection:
    """A connection to ``path``. hint: what to do about a damaged file.   shared: other threads may use it, one a time.

    Raises: DataError when the file is damaged, EnvironmentFault when it cannot be opened.
    """
    with reading(path, hint):
        db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=not shared)
        db.text_factory = functools.partial(str, encoding="utf-8", errors="replace")  # damage in one name stops nothing
        try:
            for pragma in pragmas:
                db.execute(f"PRAGMA {pragma}")
        except sqlite3.DatabaseError:
            db.close()
            raise
    return db


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
        if any(word in str(cause) for word in PASSING):
            raise EnvironmentFault(f"{path} cannot be read: {cause}") from cause
        raise DataError(f"{path} is damaged: {cause}", hint=hint) from cause


def copy(db: sqlite3.Connection, path: Path) -> None:
    """The database as one transaction left it, at ``path``, which is an empty file; writers go on meanwhile."""
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as target:
            db.backup(target)  # one step is one read transaction: in WAL mode it holds no writer up
    except sqlite3.OperationalError as cause:
        raise EnvironmentFault(f"{path}: the database could not be copied: {cause}", hint="is there space?") from cause


def _migrate(db: sqlite3.Connection, path: Path, steps: Mapping[int, str], newest: int, hint: str) -> None:
    with reading(path, hint):
        while (found := _version(db)) in steps:
            with transaction(db, "database's new form"):
                if _version(db) == found:  # else another process was quicker
                    for statement in filter(str.strip, steps[found].split(";")):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version={found + 1}")
    if found > newest:
        raise ConfigError(
            f"{path} has version {found}, this fl-tiny reads {newest} at most", hint="install a newer fl-tiny"
        )
    if found != newest:
        raise DataError(f"{path} has no tables of fl-tiny", hint=hint)


def _version(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found
