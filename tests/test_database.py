# SPDX-License-Identifier: Apache-2.0
"""What both stores do alike: one writer at a time, readers that write nothing, faults by their codes."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fl_tiny import database, doctor
from fl_tiny.errors import EnvironmentFault

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL")
HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        ((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 46, 1), False), ((3, 50, 6), False),
        ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 53, 0), True), ((4, 0, 0), True),
    ],
)  # fmt: skip
def test_which_sqlite_resets_its_log_safely(version: tuple[int, ...], sound: bool) -> None:
    assert database.resets_safely(version) == sound


def test_doctor_names_an_sqlite_that_can_lose_a_log() -> None:
    found = doctor.tried("sqlite", doctor.sqlite_found)
    assert sqlite3.sqlite_version in found.detail
    assert ("WAL reset bug" in found.detail) == (not database.resets_safely()) == (found.state is doctor.State.WARN)


def test_a_writer_waits_for_another_process_and_then_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 0.3)  # five seconds of every run of the tests
    db = database.connect(tmp_path / "state.db", PRAGMAS, "")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentFault, match="another process has written"), database.transaction(db, "state"):
            pass
        threading.Timer(0.1, holder.stdin.close).start()
        with database.transaction(db, "state"):
            db.execute("CREATE TABLE t(a)")
    finally:
        holder.kill()
        holder.wait(10)
        holder.stdout.close()
    db.close()


def test_a_reader_of_a_database_that_nobody_uses_leaves_nothing_there(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with contextlib.closing(database.connect(path, PRAGMAS, "")) as db:
        database.create(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)", 3)
    with contextlib.closing(database.connect(path, PRAGMAS, "", reads=3)) as db:
        assert db.execute("SELECT a FROM t").fetchall() == [(1,)]
        with pytest.raises(EnvironmentFault), database.transaction(db, "state"):
            db.execute("DELETE FROM t")
    assert [found.name for found in tmp_path.iterdir()] == ["state.db"]


def test_a_reader_migrates_what_is_older(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with contextlib.closing(database.connect(path, PRAGMAS, "")) as db:
        database.create(db, "CREATE TABLE t(a)", 3)
    with contextlib.closing(database.connect(path, PRAGMAS, "", reads=4)) as db:
        database.migrate(db, path, {3: "CREATE TABLE u(a)"}, 4, "")
        assert db.execute("SELECT * FROM u").fetchall() == []
