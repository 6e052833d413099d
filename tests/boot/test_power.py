# SPDX-License-Identifier: Apache-2.0
"""A board whose plug is pulled at any time boots, and has lost nothing that it had acknowledged."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest

from . import guest
from .crashes import Crashes
from .guest import until
from .rig import DEV, Rig, missing
from .test_grub import run_grub

KILLED, RECORDED = "1.5", "1.6"  # releases
MORE = 4  # samples at a time
pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no image to update here: {missing()}")


@pytest.mark.parametrize("kills", [3, pytest.param(17, marks=pytest.mark.full)])
def test_a_board_whose_plug_is_pulled_in_updates_and_rounds_boots_and_keeps_what_it_had(rig: Rig, kills: int) -> None:
    draw = random.Random(kills)
    rig.board.ready()
    rig.board.put(rig.bundle(KILLED), "/data/again.raucb")
    seeds = itertools.count(1000)

    def add() -> Any:
        """Samples that the board does not know yet."""
        rig.board.put(rig.fleet.data("kills", MORE, next(seeds)), "/data/more.npz")
        return rig.board.starts(f"fl-tiny samples add {DEV} --data /data/more.npz")

    rig.board.do("sync")
    keys = f"sha256sum {DEV}/secret/*"
    identity, secrets, counted, held = rig.status()["id"], rig.board.do(keys), rig.rounds(), rig.samples
    for number in range(kills):
        update = rig.board.starts("fl-tiny device update /data/again.raucb --reboot")
        end = time.monotonic() + draw.uniform(5, 100)
        adding = add()
        asked = held + MORE
        while time.monotonic() < end:
            if adding.poll() == 0 and asked == held + MORE:
                held = asked
                adding = add()
                asked = held + MORE
            time.sleep(0.2)
        rig.again()
        for busy in (update, adding):
            busy.kill()
            busy.wait(30)
        took = rig.board.ready()
        found = rig.status()
        print(f"kill {number}: slot {rig.slot()} after {took:.0f} s, {found['samples']} samples, {held} acknowledged")
        assert found["id"] == identity and rig.board.do(keys) == secrets
        assert found["samples"] in (held, asked), number
        held = rig.samples = found["samples"]
        assert rig.rounds() >= counted, "a published round is never lost"
        counted = rig.rounds()
    rig.trains()


def test_every_crash_state_of_a_recorded_update_has_a_whole_slot_and_all_that_was_acknowledged(
    rig: Rig, grub: Path, tmp_path: Path
) -> None:
    rig.board.ready()
    rig.board.put(rig.bundle(RECORDED), "/data/recorded.raucb")
    rig.board.off()
    before, log = guest.copy(rig.disk, tmp_path / "before.img"), tmp_path / "writes.log"
    marks = [(0, rig.samples)]  # bytes of the log, samples acknowledged by then
    rig.board = rig.start(writes=log)
    rig.board.ready()
    first = rig.slot()
    rig.learn(MORE)
    marks.append((log.stat().st_size, rig.samples))
    rig.board.do("fl-tiny device update /data/recorded.raucb", patience=900)
    rig.learn(MORE)
    marks.append((log.stat().st_size, rig.samples))
    rig.board.do("systemctl --no-block reboot", code=None)
    until(lambda: rig.slot() not in ("", first), "other slot", 900, pause=5)
    until(lambda: rig.record()["state"] == "confirmed", "confirmation", 600, pause=3)
    rig.learn(MORE)
    marks.append((log.stat().st_size, rig.samples))
    rig.trains()
    rig.board.end()
    seen = Crashes(before, log, marks, rig.folder / f"root-{RECORDED}.squashfs", tmp_path).judge()
    print(seen)
    assert seen.fat_states > 50 and seen.of_data > 10
    assert {slot for _, slots in seen.boots.values() for slot in slots} == {"A", "B"}
    chosen, _ = run_grub(tmp_path, list(seen.boots), 1, grub)
    assert [chosen[number, 0] for number in range(len(seen.boots))] == [first for first, _ in seen.boots.values()]
    rig.board = rig.start()
    rig.board.ready()
