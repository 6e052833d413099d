# SPDX-License-Identifier: Apache-2.0
"""A gateway's own life beside its fleet: new keys, an earlier head, a backup that is older than its boards."""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from .fleet import PATIENCE_S, Fleet, cli, stop
from .test_rollout import NEW, Rollout, rollout  # noqa: F401 - a fixture
from .test_rounds import ledger_is_sound


def until(what: Callable[[], bool], patience: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def heads(gw: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = cli("gateway", "heads", gw)
    return found


def two_of(fleet: Fleet) -> list[Path]:
    found = [fleet.device(f"d{i}", seed=i) for i in range(2)]
    for directory in found:
        (directory / "fl-tiny.toml").write_text("lan_timing = true\n")
    return found


def test_a_device_that_was_off_over_two_new_keys_goes_on_without_enrolling_again(fleet: Fleet) -> None:
    options = ("--interval", 2, "--clients", 1)
    gateway = fleet.gateway("--rounds", 1, *options)
    devices = two_of(fleet)
    steady, away = devices
    run = fleet.run(steady)
    assert gateway.wait() == 0
    first = cli("device", "status", steady)["gateway_key"]
    assert first == cli("gateway", "status", fleet.gw)["gateway_key"] and first["serial"] == 0

    gateway = fleet.gateway("--interval", 2, "--clients", 2)  # the other one is away: no round opens for half a minute
    line = cli("gateway", "rekey", fleet.gw, code=78)
    assert "in use" in line, "beside a running gateway it is refused"
    assert stop(gateway) == 0
    new = cli("gateway", "rekey", fleet.gw)
    assert new["serial"] == 1 and new["before"] == first["sha256"] != new["sha256"]
    gateway = fleet.gateway("--rounds", 2, *options)
    run.event("round", number=2, state="published")
    assert gateway.wait() == 0
    assert cli("device", "status", steady)["gateway_key"] == {"sha256": new["sha256"], "serial": 1}

    last = cli("gateway", "rekey", fleet.gw)
    gateway = fleet.gateway("--rounds", 3, "--interval", 2, "--clients", 2)
    back = fleet.run(away)  # it was there when it enrolled
    for each in (run, back):
        each.event("round", number=3, state="published")
    assert gateway.wait() == 0
    assert any("new key serial=2" in line for line in back.log)
    for directory in devices:
        held = cli("device", "status", directory)
        assert held["gateway_key"] == {"sha256": last["sha256"], "serial": 2} and held["trouble"] is None
    assert [d["state"] for d in cli("gateway", "devices", fleet.gw)] == ["active"] * 2
    assert [stop(each) for each in (run, back)] == [0, 0]
    ledger_is_sound(fleet.gw)


def test_an_earlier_head_is_published_again_and_the_fleet_goes_on_from_it(fleet: Fleet) -> None:
    options = ("--interval", 2, "--clients", 2)
    gateway = fleet.gateway("--rounds", 3, *options)
    devices = two_of(fleet)
    runs = [fleet.run(d) for d in devices]
    assert gateway.wait() == 0
    rows = heads(fleet.gw)
    assert [row["number"] for row in rows] == [0, 1, 2, 3] and [row["kind"] for row in rows] == [
        "model",
        *["train"] * 3,
    ]
    assert [row["updates"] for row in rows] == [0, 2, 2, 2] and [row["model"] for row in rows] == [1] * 4
    assert all(int(str(row["held"])) > 20 and 0 <= float(str(row["accuracy"])) <= 1 for row in rows[:3])
    assert (rows[3]["held"], rows[3]["accuracy"]) == (0, None), "nobody has measured the last one yet"

    files = {}
    for number in (0, 1, 3):
        out = fleet.root / f"{number}.tflite"
        found = cli("gateway", "export", fleet.gw, "--out", out, *(() if number == 3 else ("--head", number)))
        assert found["round"] == number
        files[number] = out.read_bytes()
    assert len(set(files.values())) == 3

    assert "in use" in cli("gateway", "head", "rollback", fleet.gw, 3, code=65)
    assert "no head 9" in cli("gateway", "head", "rollback", fleet.gw, 9, code=65)
    done = cli("gateway", "head", "rollback", fleet.gw, 2)  # here, since no gateway runs
    assert done["head"] == 4 and done["digest"] == rows[2]["digest"]

    gateway = fleet.gateway("--rounds", 7, *options)
    for run in runs:
        run.event("round", number=4, state="published")
    gateway.event("round", number=5, state="published")
    began = time.monotonic()
    done = cli("gateway", "head", "rollback", fleet.gw, 1)  # by the gateway that runs
    assert time.monotonic() - began < 4  # two seconds, and the command's own start
    gateway.event("round", number=done["head"], state="published", updates=0)
    for run in runs:
        run.event("round", number=done["head"], state="published")
    assert gateway.wait() == 0
    later = heads(fleet.gw)
    assert [(row["kind"], row["of"]) for row in later if row["kind"] == "rollback"] == [
        ("rollback", 2),
        ("rollback", 1),
    ]
    assert later[int(done["head"])]["digest"] == rows[1]["digest"]
    assert later[-1]["digest"] != rows[1]["digest"] and later[-1]["updates"] == 2, "rounds go on from it"
    again = fleet.root / "again.tflite"
    cli("gateway", "export", fleet.gw, "--out", again, "--round", done["head"])
    assert again.read_bytes() == files[1]
    assert [stop(run) for run in runs] == [0, 0]
    ledger_is_sound(fleet.gw)


def test_a_backup_older_than_the_last_rollout_says_so_everywhere_and_publishing_again_frees_the_fleet(
    rollout: Rollout,  # noqa: F811
) -> None:
    fleet = rollout.fleet
    gateway = fleet.gateway("--interval", 2, "--deadline", 60)
    devices = two_of(fleet)
    runs = [fleet.run(d) for d in devices]
    gateway.event("round", state="published")
    cli("gateway", "backup", fleet.gw, "--out", fleet.root / "f")
    manifest = rollout.sign(NEW, 3)
    cli("gateway", "publish", fleet.gw, manifest, "--model", NEW)
    for run in runs:
        run.event("upgrade", state="confirmed", counter=3)
    until(lambda: any(row["kind"] == "model" for row in cli("gateway", "rounds", fleet.gw)))
    assert cli("gateway", "status", fleet.gw)["trouble"] == []
    assert stop(gateway) == 0
    shutil.rmtree(fleet.gw)

    cli("gateway", "restore", fleet.gw, "--from", fleet.root / "f")
    gateway = fleet.gateway("--interval", 2, "--deadline", 60, "--web", "127.0.0.1:0")
    page = gateway.event("web")["uri"]
    until(lambda: bool(cli("gateway", "status", fleet.gw)["trouble"]), 2 * PATIENCE_S)  # devices may have backed off
    until(
        lambda: cli("gateway", "status", fleet.gw)["trouble"][0].startswith(
            "active devices hold the model of counter 3 (2, such as "
        )
    )
    (told,) = cli("gateway", "status", fleet.gw)["trouble"]
    assert "counter 3" in told and "the newest here is 1" in told
    assert re.search(r"publish the manifest of counter 3 again: fl-tiny gateway publish \S+ M --model FILE", told)
    shown = urllib.request.urlopen(f"{page}state.json", timeout=10).read().decode()
    assert "counter 3 again" in shown and 'id="trouble"' in urllib.request.urlopen(page, timeout=10).read().decode()
    until(lambda: any("fleet stands still" in line and "counter 3 again" in line for line in gateway.log))
    failed = [row for row in _doctor(fleet) if row["state"] == "fail"]
    assert [row["check"] for row in failed] == ["rollout"] and "counter 3 again" in failed[0]["todo"]
    time.sleep(6)  # another look of the gateway's, and two intervals
    lines = [line for line in gateway.log if "fleet stands still" in line]
    assert len(lines) == 1 and "WARNING" in lines[0], "once, and then seldom"
    assert not any(event["event"] == "round" for event in gateway.seen)

    cli("gateway", "publish", fleet.gw, manifest, "--model", NEW)
    gateway.event("round", state="published")  # the model's own head, of the new epoch
    until(lambda: cli("gateway", "status", fleet.gw)["trouble"] == [])
    for run in runs:
        run.event("round", state="published")
    with sqlite3.connect(fleet.gw / "state.db") as db:
        assert db.execute("SELECT kind FROM round WHERE state='published' ORDER BY number DESC").fetchone() == (
            "model",
        )
    assert all(row["state"] != "fail" for row in _doctor(fleet))
    assert [stop(run) for run in runs] == [0, 0] and stop(gateway) == 0


def _doctor(fleet: Fleet) -> list[dict[str, str]]:
    import json
    import subprocess
    import sys

    words = [sys.executable, "-m", "fl_tiny", "gateway", "doctor", str(fleet.gw), "--json"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    rows: list[dict[str, str]] = json.loads(done.stdout)
    assert done.returncode == (1 if any(row["state"] == "fail" for row in rows) else 0)
    return rows


def test_a_sealed_backup_comes_back_by_the_commands(fleet: Fleet) -> None:
    keys, file = fleet.root / "keys", fleet.root / "f"
    public = cli("fleet", "backup-key", keys)["public_key"]
    assert cli("gateway", "backup", fleet.gw, "--out", file, "--to-key", public)["sealed"] is True
    assert cli("gateway", "backup", fleet.gw, "--out", fleet.root / "g", "--to-key", keys / "backup.pub")["sealed"]
    assert "private half" in cli("gateway", "backup", fleet.gw, "--out", file, "--to-key", keys / "backup.key", code=78)
    assert "--key" in cli("gateway", "restore", fleet.root / "gw2", "--from", file, code=78)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    cli("gateway", "restore", fleet.root / "gw2", "--from", file, "--key", keys / "backup.key", code=65)
    assert not (fleet.root / "gw2").exists()
    file.write_bytes(whole)
    assert cli("gateway", "restore", fleet.root / "gw2", "--from", file, "--key", keys / "backup.key")["epoch"] == 1


@pytest.mark.parametrize("kind", ["forgotten", "another model"])
def test_a_head_that_must_not_come_back_does_not(fleet: Fleet, kind: str) -> None:
    if kind == "forgotten":
        gateway = fleet.gateway("--rounds", 1, "--start", "exact", "--interval", 1, "--clients", 2)
        devices = [fleet.device(f"d{i}", samples=600, seed=i) for i in range(2)]
        runs = [fleet.run(d) for d in devices]
        assert gateway.wait() == 0
        assert cli("gateway", "forget", fleet.gw, "d0")["round"] == 2
        assert "has forgotten" in cli("gateway", "head", "rollback", fleet.gw, 1, code=65)
        for run in runs:
            run.end()
    else:
        with sqlite3.connect(fleet.gw / "state.db") as db:  # as a rollout leaves it: another manifest, from head 1 on
            db.execute("INSERT INTO version SELECT 1, digest, body, signed, residual, steps, weight FROM version")
            db.execute("UPDATE meta SET value=? WHERE key='manifest'", (_other_manifest(fleet),))
        for words in (("head", "rollback", fleet.gw, 0), ("export", fleet.gw, "--out", fleet.root / "x", "--head", 0)):
            assert "another model" in cli("gateway", *words, code=65)
    assert [row["kind"] for row in heads(fleet.gw)][-1] != "rollback"


def _other_manifest(fleet: Fleet) -> bytes:
    other = fleet.root / "other"
    cli("gateway", "init", other, "--model", NEW)
    with sqlite3.connect(other / "state.db") as db:
        found: bytes = db.execute("SELECT value FROM meta WHERE key='manifest'").fetchone()[0]
    return found
