# SPDX-License-Identifier: Apache-2.0
"""Releases that a gateway offers: to boards they are for, that run an older one, within their share; to nobody else."""

from __future__ import annotations

import os
import shutil
from contextlib import closing, suppress
from pathlib import Path

import pytest
from device import raucs

from fl_tiny import statedir
from fl_tiny.errors import ConfigError, DataError, MalformedMessage
from fl_tiny.gateway import bundles, setup
from fl_tiny.gateway.bundles import Bundles
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.models import in_share
from fl_tiny.gateway.store import Store
from fl_tiny.protocol import release, wire
from fl_tiny.protocol.release import PIECE, BundleRefusal

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"
DIDS = [bytes([number]) * 16 for number in range(40)]
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in raucs.TOOLS), reason=f"makes bundles with {raucs.TOOLS}"
)


class Rig:
    def __init__(self, root: Path) -> None:
        self.root, self.gw = root, root / "gw"
        setup.initialise(self.gw, MODEL, None, Wanted(None))
        self.store = Store.open(self.gw / statedir.DATABASE)
        self.keys = raucs.make_keys(root / "keys")

    def bundle(self, number: str, board: str = raucs.BOARD) -> Path:
        return raucs.make_bundle(self.root, self.keys, number, board=board, form="verity")

    def running(self, *dids: bytes, number: str = "1", board: str = raucs.BOARD) -> Bundles:
        """A gateway that has just been started, with devices that register."""
        found = Bundles(self.store)
        for did in dids:
            found.registered(did, wire.Register(did, (1,), 1, b"b" * 8, None, board, number))
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_board_gets_the_newer_release_for_it_in_pieces(rig: Rig) -> None:
    file = rig.bundle("2.1")
    made = bundles.add(rig.gw, rig.store, file, 1.0)
    assert (made.board, made.bundle.release, made.bundle.size) == (raucs.BOARD, "2.1", file.stat().st_size)
    running = rig.running(DIDS[0])
    wanted = running.wanted(DIDS[0])
    assert wanted == made.bundle
    name, pieces = wire.name_of(wanted.digest), -(-wanted.size // PIECE)
    found = [running.piece(DIDS[0], name, number) for number in range(pieces)]
    assert b"".join(piece or b"" for piece in found) == file.read_bytes()
    assert running.piece(DIDS[0], name, pieces) is None
    assert running.piece(DIDS[0], "AAAAAAAAAAA", 0) is None
    kept = next((rig.gw / "bundle").iterdir())
    assert kept.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("board", "number", "gets"),
    [
        ("fl-tiny-other", "1", False),
        (raucs.BOARD, "2.1", False),
        (raucs.BOARD, "2.10", False),
        (raucs.BOARD, "2", True),
    ],
)
def test_only_a_board_that_it_is_for_and_newer_on_is_offered_it(rig: Rig, board: str, number: str, gets: bool) -> None:
    bundles.add(rig.gw, rig.store, rig.bundle("2.1"), 1.0)
    running = rig.running(DIDS[0], number=number, board=board)
    assert (running.wanted(DIDS[0]) is not None) == gets
    assert running.wanted(DIDS[1]) is None, "a device that says nothing of its board"


def test_a_share_of_the_boards_and_a_restart_changes_nothing(rig: Rig) -> None:
    file = rig.bundle("2")
    bundles.add(rig.gw, rig.store, file, 0.3)
    running = rig.running(*DIDS)
    chosen = [did for did in DIDS if running.wanted(did)]
    assert chosen == [did for did in DIDS if in_share(did, 0.3)]
    assert 0 < len(chosen) < len(DIDS)
    outside = next(did for did in DIDS if did not in chosen)
    assert running.piece(outside, wire.name_of(running.wanted(chosen[0]).digest), 0) is None  # type: ignore[union-attr]
    assert [did for did in DIDS if Bundles(rig.store).wanted(did)] == chosen
    bundles.add(rig.gw, rig.store, file, 1.0)
    running.refresh()
    assert all(running.wanted(did) for did in DIDS)


def test_a_refusal_is_kept_shown_and_not_offered_again(rig: Rig) -> None:
    bundles.add(rig.gw, rig.store, rig.bundle("2"), 1.0)
    with closing(rig.store):
        rig.store.add_devices([(did, did * 2, b"k" * 32) for did in DIDS[:2]])
        running = rig.running(DIDS[0], DIDS[1])
        name = running.wanted(DIDS[0]).digest[:8]  # type: ignore[union-attr]
        running.refused(DIDS[0], BundleRefusal(name, 21, "it did not come up"))
        for now in (running, Bundles(rig.store)):
            assert now.wanted(DIDS[0]) is None
            assert now.wanted(DIDS[1]) is not None
        shown = setup.summary(rig.store, False)["bundles"]
        assert [(row["boards"], row["refused"], row["why"]) for row in shown] == [(2, 1, "it did not come up")]
        running.registered(DIDS[1], wire.Register(DIDS[1], (1,), 2, b"c" * 8, None, raucs.BOARD, "2"))
        assert setup.summary(rig.store, False)["bundles"][0]["running"] == 1
        bundles.add(rig.gw, rig.store, rig.bundle("2.0.1"), 1.0)
        running.refresh()
        assert running.wanted(DIDS[0]) is not None, "another release may be better"


def test_one_release_a_board_the_newest_and_withdrawn_files_go(rig: Rig) -> None:
    bundles.add(rig.gw, rig.store, rig.bundle("2"), 1.0)
    bundles.add(rig.gw, rig.store, rig.bundle("2", board="fl-tiny-b"), 1.0)
    bundles.add(rig.gw, rig.store, rig.bundle("3"), 1.0)
    assert [(one.board, one.bundle.release) for one in bundles.offered(rig.store)] == [
        ("fl-tiny-b", "2"),
        (raucs.BOARD, "3"),
    ]
    assert len(list((rig.gw / "bundle").iterdir())) == 2
    with pytest.raises(ConfigError, match="is older"):
        bundles.add(rig.gw, rig.store, rig.bundle("2.9"), 1.0)
    running = rig.running(DIDS[0])
    bundles.withdraw(rig.gw, rig.store, raucs.BOARD)
    running.refresh()
    assert running.wanted(DIDS[0]) is None
    with pytest.raises(ConfigError, match="no bundle"):
        bundles.withdraw(rig.gw, rig.store, raucs.BOARD)
    assert len(list((rig.gw / "bundle").iterdir())) == 1


def test_what_is_no_verity_bundle_is_refused(rig: Rig) -> None:
    whole = rig.bundle("2").read_bytes()
    for number, data in enumerate((b"", b"text", whole[:-1], whole[:-9] + whole[-8:], os.urandom(5000))):
        file = rig.root / f"{number}.raucb"
        file.write_bytes(data)
        with pytest.raises(DataError):
            bundles.add(rig.gw, rig.store, file, 1.0)
    with pytest.raises(DataError, match="verity"):
        bundles.add(rig.gw, rig.store, raucs.make_bundle(rig.root, rig.keys, "2", form="plain"), 1.0)
    assert bundles.offered(rig.store) == []


def test_no_bytes_in_place_of_a_manifest_harm(rig: Rig) -> None:
    whole = rig.bundle("2").read_bytes()
    signed = bytearray(whole[-8 - release.manifest_size(whole[-8:]) : -8])
    assert release.read_manifest(bytes(signed)).number == "2"
    for at in range(len(signed)):
        for value in (0x00, 0x80, 0x84, 0xFF):
            damaged = signed[:at] + bytes([value]) + signed[at + 1 :]
            with suppress(DataError):
                release.read_manifest(bytes(damaged))


def test_a_device_that_names_no_board_is_refused_as_malformed(rig: Rig) -> None:
    with pytest.raises(MalformedMessage):
        rig.running(DIDS[0], number="one")
