# SPDX-License-Identifier: Apache-2.0
"""What a booted board writes to its card in a day at a round an hour: no more than 2 MB."""

from __future__ import annotations

import re
import time

import pytest

from .rig import Rig, missing

IDLE_S = 240  # longer than the period of anything that runs on a board
WARM = 17  # rounds before: SQLite's log has its full length from then on, as after a first day
SETTLED_S = 60
SECTOR = 512  # bytes. Source: Linux, Documentation/block/stat.rst
CYCLE = 18  # rounds in which SQLite's log comes round once: what it is carried over to is written then, all at once
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


@pytest.mark.parametrize("hours", [CYCLE, pytest.param(24, marks=pytest.mark.full)])
def test_a_day_of_hourly_rounds_writes_little_to_the_card(rig: Rig, hours: int) -> None:
    """The board's clock goes forward by an hour a round; a pause shows what is written without any.

    The system counts by a clock that cannot be set, so what it would have written by itself is written by ``sync``.
    """
    rig.board.ready()
    rig.paces(1.0)
    rig.trains(WARM)
    first, began, counted = written(rig), time.monotonic(), rig.rounds()
    held_h = held(rig)
    for hour in range(1, hours + 1):
        rig.trains()
        rig.board.do("date -s '+1 hour' > /dev/null" + ("" if hour % held_h else "; sync"))
    rounds = rig.rounds() - counted
    day = (written(rig) - first) * 24 / rounds
    took = time.monotonic() - began
    rig.paces(3600.0)
    time.sleep(SETTLED_S)
    before = written(rig)
    time.sleep(IDLE_S)
    idle = written(rig) - before
    rig.paces()
    print(
        f"{day:.0f} B a day by {rounds} rounds in {took:.0f} s, an hour each by its clock; {idle} B in {IDLE_S} s idle"
    )
    assert rounds >= hours
    assert day <= 2_000_000
    assert idle <= 16_384, "two calls of sync and nothing that comes again and again"
