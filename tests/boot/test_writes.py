# SPDX-License-Identifier: Apache-2.0
"""What a booted board writes to its card in a day at a round an hour: no more than 2 MB."""

from __future__ import annotations

import re
import time

import pytest

from .rig import Rig, missing

IDLE_S = 240  # longer than the period of anything that runs on a board
HOURS = 24  # of a day, a round each
DAYS = 2  # on the first SQLite's log grows, and each block of it costs the filesystem some; then it is used again
SETTLED_S = 60
SECTOR = 512  # bytes. Source: Linux, Documentation/block/stat.rst
pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no image to look at here: {missing()}")


def written(rig: Rig) -> int:
    """Bytes that the data partition has been given since the start, by Linux's count, all caches emptied."""
    fields = rig.board.do("sync; cat /sys/class/block/vda4/stat").split()
    return int(fields[6]) * SECTOR


def held(rig: Rig) -> int:
    """Whole hours that a board's system leaves in memory what nobody has flushed."""
    said = rig.board.do("cat /proc/sys/vm/dirty_expire_centisecs; grep ' /data ' /proc/mounts")
    expire, mount = said.split("\n", 1)
    commit = re.search(r"commit=(\d+)", mount)
    return max(1, min(int(expire) // 100, int(commit[1]) if commit else 5) // 3600)


def test_a_day_of_hourly_rounds_writes_little_to_the_card(rig: Rig) -> None:
    """The board's clock goes forward by an hour a round; a pause shows what is written without any.

    The system counts by a clock that cannot be set, so what it would have written by itself is written by ``sync``.
    """
    rig.board.ready()
    rig.paces(1.0)
    held_h = held(rig)
    days = []
    for _ in range(DAYS):
        first, began, counted = written(rig), time.monotonic(), rig.rounds()
        for hour in range(1, HOURS + 1):
            rig.trains()
            rig.board.do("date -s '+1 hour' > /dev/null" + ("" if hour % held_h else "; sync"))
        rounds = rig.rounds() - counted
        assert rounds >= HOURS
        days.append((written(rig) - first) * HOURS / rounds)
        print(
            f"{days[-1]:.0f} B a day by {rounds} rounds in {time.monotonic() - began:.0f} s, an hour each by its clock"
        )
    rig.paces(3600.0)
    time.sleep(SETTLED_S)
    before = written(rig)
    time.sleep(IDLE_S)
    idle = written(rig) - before
    rig.paces()
    print(f"{idle} B in {IDLE_S} s idle")
    assert max(days) <= 2_000_000
    assert idle <= 16_384, "two calls of sync and nothing that comes again and again"
