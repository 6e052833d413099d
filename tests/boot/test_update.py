# SPDX-License-Identifier: Apache-2.0
"""A booted image takes a release from its gateway, keeps it or leaves it, and refuses what it should not start."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from e2e.fleet import cli

from . import releases
from .guest import until
from .rig import DEV, Rig, missing

GOOD, BAD = "2.0", "3.0"
LAST_BYTES = 4 << 20  # of a release, that come over the LAN in the default form: a board that goes on with a fetch
FETCH_S = 7200.0  # 90 MB through an emulated processor's DTLS beside its rounds: 25 to 45 kB/s
pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no image to update here: {missing()}")


def test_what_is_foreign_flipped_or_older_is_refused_on_the_board(rig: Rig) -> None:
    slot = releases.small(rig.folder)
    whole = releases.bundle(slot, "9.0", rig.keys, rig.folder / "whole.raucb")
    foreign = releases.bundle(slot, "9.0", releases.keys_of(rig.folder / "foreign"), rig.folder / "foreign.raucb")
    older = releases.bundle(slot, "0.9", rig.keys, rig.folder / "older.raucb")
    before = rig.slot()
    for made, why in ((foreign, "signature"), (releases.flipped(whole), "rauc"), (older, "older than")):
        rig.board.put(made, "/data/b.raucb")
        said = rig.board.do("fl-tiny device update /data/b.raucb 2>&1; echo exit=$?", patience=300)
        assert "exit=65" in said and why in said.lower(), said
    rig.board.do("rm /data/b.raucb")
    assert rig.board.do("fl-tiny device slot get-primary").strip() == before


@pytest.mark.parametrize(
    "size", [pytest.param(LAST_BYTES, id="last"), pytest.param(0, id="all", marks=pytest.mark.full)]
)
def test_a_release_comes_over_the_lan_is_confirmed_and_trains_on(rig: Rig, size: int) -> None:
    number = GOOD if size else "2.1"
    made, before = rig.bundle(number), rig.slot()
    if size:
        put_what_came(rig, made, size)
    began, counted = time.monotonic(), rig.rounds()
    cli("gateway", "bundle", "add", rig.fleet.gw, made)
    until(lambda: is_fetched(rig), "release on the board", FETCH_S, pause=3)
    rate = (size or made.stat().st_size) / (time.monotonic() - began)
    print(
        f"fetched {size or made.stat().st_size} B at {rate / 1000:.1f} kB/s, {rig.rounds() - counted} rounds meanwhile"
    )
    until(lambda: rig.offered()["running"], "board that runs it", 900, pause=5)
    rig.board.ready()
    assert rig.slot() != before
    until(lambda: rig.record()["state"] == "confirmed", "confirmation", 300, pause=3)
    assert rig.board.do("fl-tiny device slot get-primary").strip() == rig.slot()
    assert rig.status()["samples"] == rig.samples
    rig.trains()
    rig.again()
    rig.board.ready()
    assert rig.slot() != before, "it stays"
    assert rig.board.do("cat /etc/fl-tiny-release").split("RELEASE=")[1].strip() == number


def test_a_release_that_cannot_reach_its_gateway_is_left_by_itself(rig: Rig) -> None:
    before = rig.slot()
    made = rig.bundle(BAD, releases.numb)
    came = f"{DEV}/update/{name_of(made)}"
    rig.board.put(made, f"{came}.new")
    cli("gateway", "bundle", "add", rig.fleet.gw, made)
    rig.board.do(f"chown fl-tiny: {came}.new; mv {came}.new {came}.raucb")  # as if the device had fetched it
    until(lambda: rig.offered()["refused"], "refusal", 1500, pause=5)
    assert "did not reach its gateway within 60 s" in rig.offered()["why"]
    rig.board.ready()
    assert rig.slot() == before
    assert rig.record()["state"] == "fell back"
    rig.trains()


def name_of(made: Path) -> str:
    """What a release is called on the board."""
    return hashlib.sha256(made.read_bytes()).hexdigest()[:16]


def is_fetched(rig: Rig) -> bool:
    """Is it there as a whole, or has the board gone on since? Its journal does not outlive a restart."""
    said = rig.board.do("journalctl -u fl-tiny-device -o cat | grep 'state=fetched'; true", code=None)
    return "number=" in said or bool(rig.offered()["running"])


def put_what_came(rig: Rig, made: Path, left: int) -> None:
    """The board has all but the last ``left`` bytes, as a fetch leaves it that was cut."""
    part = f"{DEV}/update/{name_of(made)}.part"
    rig.board.put(made, part, made.stat().st_size - left)
    rig.board.do(f"chown fl-tiny: {part}; sync")
