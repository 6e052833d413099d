# SPDX-License-Identifier: Apache-2.0
"""What both SQLite stores do alike: a transaction that is on the disk when it returns, or has changed nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from fl_tiny.errors import EnvironmentFault


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, what: str) -> Iterator[sqlite3.Connection]:
    """All or nothing on ``db``. what: the thing written, for the message.

    Raises: EnvironmentFault for a full disk, a lock of five seconds or an I/O error; what the block raises.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except BaseException as cause:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if isinstance(cause, sqlite3.OperationalError):
            raise EnvironmentFault(f"the {what} could not be written: {cause}") from cause
        raise
