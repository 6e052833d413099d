# SPDX-License-Identifier: Apache-2.0
"""A gateway in one file and back: what is refused, what is left, and what the next head is signed with."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fl_tiny.errors import ConfigError, DataError
from fl_tiny.gateway import backup, sealed, setup
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
    digest = hashlib.sha256(text).hexdigest().encode()
    (tmp_path / "x").write_bytes(b"\n".join((magic, digest, text, rest)))
    with pytest.raises(DataError, match="no gateway has"):
        backup.restore(tmp_path / "no", tmp_path / "x")
    assert not (tmp_path / "no").exists()


def test_parts_of_two_gateways_are_not_put_together(gw: Path, tmp_path: Path) -> None:
    setup.initialise(tmp_path / "other", MODEL, None, setup.Wanted(2))
    other, own = (tmp_path / "other/secret/gateway.key").read_bytes(), (gw / "secret/gateway.key").read_bytes()
    backup.write(gw, tmp_path / "f")
    magic, _, index, rest = (tmp_path / "f").read_bytes().split(b"\n", 3)
    text = index.replace(hashlib.sha256(own).hexdigest().encode(), hashlib.sha256(other).hexdigest().encode())
    digest = hashlib.sha256(text).hexdigest().encode()
    (tmp_path / "x").write_bytes(b"\n".join((magic, digest, text, rest.replace(own, other))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="of another gateway"):
        backup.restore(tmp_path / "empty", tmp_path / "x")
    assert not list((tmp_path / "empty").iterdir())

    (gw / "secret/gateway.key").write_bytes(other)
    with pytest.raises(DataError, match="not the key of this gateway's ledger"):
        backup.write(gw, tmp_path / "y")
    assert not (tmp_path / "y").exists(), "what no restore would take is not written"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    sealed.make_keys(tmp_path / "keys")
    return tmp_path / "keys"


def to(keys: Path) -> bytes:
    return sealed.public_key(str(keys / sealed.PUBLIC_FILE))


def test_a_sealed_backup_opens_with_its_key_alone(gw: Path, keys: Path, tmp_path: Path) -> None:
    sealed.make_keys(tmp_path / "others")
    own, others = (sealed.secret_key(folder / sealed.SECRET_FILE) for folder in (keys, tmp_path / "others"))
    for name in (sealed.SECRET_FILE, sealed.PUBLIC_FILE):
        assert (keys / name).stat().st_mode & 0o777 == (0o600 if name == sealed.SECRET_FILE else 0o644)
    psk = bytes(range(100, 132))
    Store.open(gw / "state.db").add_devices([(b"d" * 16, b"p" * 32, psk)])
    backup.write(gw, tmp_path / "plain")
    backup.write(gw, tmp_path / "f", to(keys))
    stored, secret = (tmp_path / "f").read_bytes(), (gw / "secret/gateway.key").read_bytes()
    assert secret in (tmp_path / "plain").read_bytes() and psk in (tmp_path / "plain").read_bytes()
    assert secret not in stored and psk not in stored and b"SQLite" not in stored
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert not [path for path in [*tmp_path.iterdir(), *gw.iterdir()] if path.name.startswith(".")], "no draft is left"

    assert backup.restore(tmp_path / "gw2", tmp_path / "f", secret=own).devices == 1
    assert (tmp_path / "gw2/secret/gateway.key").read_bytes() == secret
    with pytest.raises(ConfigError, match="is sealed"):
        backup.restore(tmp_path / "gw3", tmp_path / "f")
    with pytest.raises(DataError, match="does not open it"):
        backup.restore(tmp_path / "gw3", tmp_path / "f", secret=others)
    with pytest.raises(DataError, match="not sealed"):
        backup.restore(tmp_path / "gw3", tmp_path / "plain", secret=own)
    assert not (tmp_path / "gw3").exists()


def test_a_sealed_backup_is_refused_whole_when_any_of_it_is_changed(gw: Path, keys: Path, tmp_path: Path) -> None:
    (gw / "model/filler.tflite").write_bytes(random.Random(1).randbytes(3 * sealed.PIECE))
    backup.write(gw, tmp_path / "f", to(keys))
    secret = sealed.secret_key(keys / sealed.SECRET_FILE)
    whole = (tmp_path / "f").read_bytes()
    start = len(sealed.MAGIC) + 80 + 24  # sealed key, header: docs/cli-gateway.md
    piece = sealed.PIECE + 17
    pieces = [whole[at : at + piece] for at in range(start, len(whole), piece)]
    assert len(pieces) >= 4
    head = whole[:start]
    swapped, doubled, missing = pieces[:], pieces[:], pieces[:]
    swapped[1], swapped[2] = pieces[2], pieces[1]
    doubled.insert(1, pieces[1])
    del missing[1]
    hostile = [head + b"".join(each) for each in (swapped, doubled, missing, pieces[:-1], [pieces[-1]], [])]
    hostile += [whole + b"\0", whole[:-1], whole[: start + 5], whole[:30], whole + pieces[-1]]
    for at in [*range(len(sealed.MAGIC), start, 3), *range(start, len(whole), 9973), len(whole) - 1]:
        hostile.append(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for damaged in hostile:
        (tmp_path / "x").write_bytes(damaged)
        with pytest.raises(DataError):
            backup.restore(tmp_path / "no", tmp_path / "x", secret=secret)
    assert not (tmp_path / "no").exists(), "nothing is written before all of it is checked"
    assert backup.restore(tmp_path / "gw2", tmp_path / "f", secret=secret).head == 0


def test_a_large_ledger_is_sealed_and_opened_in_little_memory(gw: Path, keys: Path, tmp_path: Path) -> None:
    filler, memory = 192 << 20, 150 << 20  # a model of 64 MiB is read whole
    with sqlite3.connect(gw / "state.db") as db:
        rows = [(f"filler:{n}",) for n in range(filler >> 16)]
        db.executemany("INSERT INTO meta VALUES(?, randomblob(65536))", rows)
    words = f"""
import resource, sys
from pathlib import Path
from fl_tiny.gateway import backup, sealed
keys, gw, f, out = map(Path, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_DATA, ({memory}, {memory}))
backup.write(gw, f, sealed.public_key(str(keys / sealed.PUBLIC_FILE)))
backup.restore(out, f, secret=sealed.secret_key(keys / sealed.SECRET_FILE))
"""
    arguments = map(str, (keys, gw, tmp_path / "f", tmp_path / "gw2"))
    done = subprocess.run(
        [sys.executable, "-c", words, *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gw2/state.db").stat().st_size > filler


def test_a_wrong_key_is_refused_before_anything_is_written(gw: Path, keys: Path, tmp_path: Path) -> None:
    text = (keys / sealed.PUBLIC_FILE).read_text().strip()
    assert sealed.public_key(text) == to(keys)
    for slip in (text[:-1], text[:30] + ("A" if text[30] != "A" else "B") + text[31:], text + "A", "fl-tiny-backup-"):
        with pytest.raises(ConfigError, match="no public half"):
            sealed.public_key(slip)
    with pytest.raises(ConfigError, match="private half"):
        sealed.public_key(str(keys / sealed.SECRET_FILE))
    with pytest.raises(ConfigError, match="exists already"):
        sealed.make_keys(keys)
    with pytest.raises(ConfigError, match="another machine"):
        sealed.make_keys(gw / "keys")
    with pytest.raises(DataError):
        sealed.public_key(str(tmp_path / "nothing"))
    (keys / sealed.SECRET_FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="0600"):
        sealed.secret_key(keys / sealed.SECRET_FILE)
