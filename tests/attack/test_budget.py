# SPDX-License-Identifier: Apache-2.0
"""A member that asks as fast as it can beside others that play a round.

Backs docs/failures.md, row 88, and docs/budgets.md.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2e.fleet import Daemon

from fl_tiny.gateway.budget import LINES
from fl_tiny.lab.load import Options, provision
from fl_tiny.lab.swarm import Swarm
from fl_tiny.protocol import signed

from .test_flood import ADDRESS, DEVICES, HEAD, HERE, TIMES, python, round_s

KINDS = 8  # of log lines that a member can cause (guess)


@dataclass(frozen=True, slots=True)
class Figures:
    """lines: of the log that name the member, a minute.   rows: that the member has, in all tables.   kept: bytes."""

    quiet_s: float
    greedy_s: float | None
    sent: int
    answers: dict[str, int]
    seconds: float
    lines: int
    rows: int
    chunk_bytes: int

    def faults(self) -> list[str]:
        """What the member got."""
        faults = {
            "round": self.greedy_s is None,  # not even in 2 * TIMES its quiet time
            "log": self.lines > KINDS * LINES * (1 + self.seconds / 60),
            "requests": sum(n for code, n in self.answers.items() if code != "5.03") > 6000 + 500 * self.seconds,
        }
        return [name for name, broken in faults.items() if broken]


def attack_budget(root: Path, *how: str) -> Figures:
    """Rounds of 20 devices, quiet and beside a member that asks for everything at any rate."""
    gateway_pk, manifest, devices = provision(root / "gw", Options(DEVICES + 1, HEAD))
    greedy = signed.device_id(signed.public_key(bytes.fromhex(devices[-1][0])))
    command = [sys.executable, HERE / "doorkeeper.py", *how]
    words = ("--interval", 0, "--clients", DEVICES, "--quorum", 0.9, "--deadline", 60)
    gateway = Daemon("gateway", "run", root / "gw", "--bind", "127.0.0.1:0", *words, command=command)
    try:
        port = int(gateway.event("listening")["uri"].rsplit(":", 1)[1])
        quiet_s = round_s(gateway, Swarm(port, 1, 1, gateway_pk, manifest, devices[:-1]), root, 60)
        assert quiet_s is not None
        with python("greedy.py", port, ADDRESS, greedy.hex(), devices[-1][1]) as member:
            assert member.stdin and member.stdout
            member.stdout.readline()
            began = time.monotonic()
            time.sleep(10)
            swarm = Swarm(port, 2, 2, gateway_pk, manifest, devices[:-1])
            greedy_s = round_s(gateway, swarm, root, 2 * TIMES * quiet_s)
            seconds = time.monotonic() - began
            member.stdin.close()
            facts = json.loads(member.stdout.readline())
        lines = sum(greedy.hex()[:8] in line for line in gateway.log)
    finally:
        gateway.end()
    rows, size = held(root / "gw/state.db", greedy)
    figures = Figures(quiet_s, greedy_s, facts["sent"], facts["answers"], seconds, lines, rows, size)
    print(f"budget: {figures}")
    return figures


def held(path: Path, did: bytes) -> tuple[int, int]:
    """Rows of one device in all tables, and the bytes of its chunks."""
    with sqlite3.connect(path) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        tables = [t for t in tables if any(c[1] == "did" for c in db.execute(f"PRAGMA table_info({t})"))]
        rows = sum(db.execute(f"SELECT count(*) FROM {t} WHERE did=?", (did,)).fetchone()[0] for t in tables)
        size = db.execute("SELECT coalesce(sum(length(body)), 0) FROM chunk WHERE did=?", (did,)).fetchone()[0]
    return rows, size


def test_a_member_that_asks_for_everything_costs_the_others_no_round_and_fills_neither_log_nor_disk(
    tmp_path: Path,
) -> None:
    figures = attack_budget(tmp_path)
    assert figures.faults() == [], figures
    assert figures.chunk_bytes <= HEAD[0] * HEAD[1] + HEAD[1], figures
    assert figures.rows < 400, figures


@pytest.mark.full  # 46 s
def test_control_without_budgets_a_member_takes_what_it_can(tmp_path: Path) -> None:
    assert "log" in (faults := attack_budget(tmp_path, "lavish").faults()) and len(faults) > 1
