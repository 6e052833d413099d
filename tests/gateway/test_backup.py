# SPDX-License-Identifier: Apache-2.0
"""A gateway in one file and back: what is refused, what is left, and what the next head is signed with."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from fl_tiny.errors import ConfigError, DataError
from fl_tiny.gateway import backup, setup
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import OpenRound
from fl_tiny.protocol import signed, wire

MODEL = Path(__file__).parents[1] / "models/bench/head_224-16-4.tflite"


@pytest.fixture
def gw(tmp_path: Path) -> Path:
    setup.initialise(tmp_path / "gw", MODEL, None, setup.Wanted(2))
    (tmp_path / "gw/fl-tiny.toml").write_text("epochs = 3\n")
    return tmp_path / "gw"


def test_a_gateway_comes_back_with_its_keys_model_and_settings_in_a_new_epoch(gw: Path, tmp_path: Path) -> None:
    codes = setup.new_codes(gw, 2, 600)
    store = Store.open(gw / "state.db")
    store.open_round(OpenRound(b"r" * 8, 1, 0, 60.0, "train"))
    before = store.head()
    backup.write(gw, tmp_path / "f")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert codes and sorted(path.name for path in tmp_path.iterdir()) == ["f", "gw"], "no draft is left"

    found = backup.restore(tmp_path / "gw2", tmp_path / "f")
    assert (found.head, found.epoch) == (0, 1)
    for name in ("secret/gateway.key", "secret/model.key", "model/base.tflite", "fl-tiny.toml"):
        assert (tmp_path / "gw2" / name).read_bytes() == (gw / name).read_bytes()
    restored = Store.open(tmp_path / "gw2/state.db")
    head = wire.decode(wire.Head, signed.verify(restored.head().signed, restored.get("gateway_pk")))
    assert head.rank == (1, 0) and head.digest == before.digest
    assert restored.opened() is None and restored.rounds()[0]["state"] == "aborted" and not restored.faults()
    with sqlite3.connect(tmp_path / "gw2/state.db") as db:
        assert not db.execute("SELECT 1 FROM pairing").fetchone(), "a code may have been used since the backup"
    with pytest.raises(ConfigError, match="in use"):
        backup.restore(tmp_path / "gw2", tmp_path / "f")

    # a second disaster: the same file again, above the epoch that devices know by now
    with pytest.raises(ConfigError, match="not above"):
        backup.restore(tmp_path / "gw3", tmp_path / "f", 0)
    assert not (tmp_path / "gw3").exists()
    assert backup.restore(tmp_path / "gw3", tmp_path / "f", 2).epoch == 2
    backup.write(tmp_path / "gw3", tmp_path / "f3")
    assert backup.restore(tmp_path / "gw4", tmp_path / "f3").epoch == 3


def test_no_flipped_byte_and_no_cut_passes(gw: Path, tmp_path: Path) -> None:
    backup.write(gw, tmp_path / "f")
    whole = (tmp_path / "f").read_bytes()
    start = whole.index(b"\n", whole.index(b"{"))
    places = [*range(0, start, 7), *range(start, len(whole), 1009), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        (tmp_path / "x").write_bytes(damaged)
        with pytest.raises(DataError):
            backup.restore(tmp_path / "no", tmp_path / "x")
    for damaged in (whole[:-1], whole + b"\0", whole[: start // 2], b"", b"x" * 100):
        (tmp_path / "x").write_bytes(damaged)
        with pytest.raises(DataError):
            backup.restore(tmp_path / "no", tmp_path / "x")
    assert not (tmp_path / "no").exists(), "nothing is written before all of it is checked"


@pytest.mark.parametrize("name", ["../evil", "/etc/x", "secret/../../x", "lock", "model/.hidden", "spool/x"])
def test_a_member_that_no_gateway_has_is_refused(gw: Path, tmp_path: Path, name: str) -> None:
    backup.write(gw, tmp_path / "f")
    magic, _, index, rest = (tmp_path / "f").read_bytes().split(b"\n", 3)
    changed = json.loads(index)
    changed["members"][0]["name"] = name
    text = json.dumps(changed).encode()
    digest = backup.hashlib.sha256(text).hexdigest().encode()
    (tmp_path / "x").write_bytes(b"\n".join((magic, digest, text, rest)))
    with pytest.raises(DataError, match="no gateway has"):
        backup.restore(tmp_path / "no", tmp_path / "x")
    assert not (tmp_path / "no").exists()


def test_parts_of_two_gateways_are_not_put_together(gw: Path, tmp_path: Path) -> None:
    setup.initialise(tmp_path / "other", MODEL, None, setup.Wanted(2))
    (tmp_path / "other/secret/gateway.key").replace(gw / "secret/gateway.key")
    backup.write(gw, tmp_path / "f")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="of another gateway"):
        backup.restore(tmp_path / "empty", tmp_path / "f")
    assert not list((tmp_path / "empty").iterdir())
