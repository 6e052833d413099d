# SPDX-License-Identifier: Apache-2.0
"""Real gateway, real devices, real DTLS on loopback: rounds, and what kills and refusals do to them."""

from __future__ import annotations

import hashlib
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fl_tiny import Device
from fl_tiny.device.runtimes import installed

from .fleet import COMMAND, MODEL, Daemon, Fleet, cli, stop


def ledger_is_sound(directory: Path) -> None:
    """Each accepted update is in exactly one head, and each head's weight is that of its updates (invariant I2)."""
    with sqlite3.connect(directory / "state.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        heads = dict(
            db.execute("SELECT number, weight FROM version WHERE number>0 AND weight>0")
        )  # no update made the others
        found = dict(
            db.execute("SELECT consumed_by, sum(weight) FROM ledger WHERE consumed_by IS NOT NULL GROUP BY consumed_by")
        )
        assert heads == found
        assert not db.execute(
            "SELECT 1 FROM ledger JOIN round USING(rid) WHERE state='published' AND status=0 AND consumed_by IS NULL"
        ).fetchone()


def test_two_devices_make_three_heads_and_both_keep_a_model(fleet: Fleet) -> None:
    gateway = fleet.gateway("--rounds", 3, "--clients", 2, "--interval", 0)
    devices = [fleet.device(f"d{i}", seed=i) for i in range(2)]
    runs = [fleet.run(d, "--rounds", 3) for d in devices]
    assert gateway.wait() == 0
    assert [run.wait() for run in runs] == [0, 0]

    rounds = cli("gateway", "rounds", fleet.gw)
    assert [(r["number"], r["state"], r["received"]) for r in rounds] == [(n, "published", 2) for n in (1, 2, 3)]
    assert rounds[2]["loss"] < rounds[0]["loss"]
    status = cli("gateway", "status", fleet.gw)
    assert status["round"] == 3 and status["state"] == "stopped" and status["uri"] is None and status["devices"] == 2
    for row in cli("gateway", "devices", fleet.gw):
        assert row["state"] == "active" and row["last_round"] == 3 and row["samples"] == 60
        assert row["last_seen_s"] < 60
    for run, directory in zip(runs, devices, strict=True):
        names = [event["event"] for event in run.seen]
        assert names[0] == "connected" and {"round", "update", "model"} <= set(names)
        found = cli("device", "status", directory)
        assert found["rounds"] == 3 and found["samples"] == 60 and found["declines"] is None
        assert set(found["accuracy"]) == {"previous", "global", "personal", "samples", "groups", "on"}
        current = (directory / "model/current.tflite").read_bytes()
        assert len(current) == MODEL.stat().st_size and current != MODEL.read_bytes()
    ledger_is_sound(fleet.gw)

    out = fleet.root / "fleet.tflite"
    exported = cli("gateway", "export", fleet.gw, "--out", out)
    assert exported == {"out": str(out), "round": 3, "sha256": hashlib.sha256(out.read_bytes()).hexdigest()}
    test = fleet.data("test", 200, 77)
    before = cli("model", "evaluate", MODEL, "--data", test)["accuracy"]
    after = cli("model", "evaluate", out, "--data", test)["accuracy"]
    assert after > before + 0.2, "three rounds on what can be learnt help"
    labels = cli("predict", devices[0], "--data", test)["labels"]
    assert np.mean(np.array(labels) == np.load(test)["y"]) > before + 0.2


def test_the_same_command_does_nothing_once_its_rounds_are_done(fleet: Fleet) -> None:
    gateway = fleet.gateway("--rounds", 1, "--interval", 0)
    run = fleet.run(fleet.device("d"), "--rounds", 1)
    assert gateway.wait() == 0 and run.wait() == 0
    started = time.monotonic()
    assert fleet.gateway("--rounds", 1, "--interval", 0).wait() == 0
    assert time.monotonic() - started < 10
    assert len(cli("gateway", "rounds", fleet.gw)) == 1


def test_a_device_killed_in_training_does_not_hold_the_round_up(fleet: Fleet) -> None:
    gateway = fleet.gateway("--rounds", 2, "--clients", 3, "--interval", 0, "--deadline", 120)
    devices = [fleet.device(f"d{i}", seed=i) for i in range(3)]
    victim, *others = (fleet.run(d, "--rounds", 2) for d in devices)
    victim.event("round", state="joined")
    victim.signal(signal.SIGKILL)
    assert gateway.wait() == 0
    assert [run.wait() for run in others] == [0, 0]
    rounds = cli("gateway", "rounds", fleet.gw)
    assert [r["received"] for r in rounds] == [2, 2]
    assert rounds[0]["seconds"] < 30 and rounds[1]["seconds"] < 30
    ledger_is_sound(fleet.gw)
    # the killed device comes back, owes nothing, and takes part again
    gateway = fleet.gateway("--rounds", 3, "--clients", 1, "--interval", 0)
    back = fleet.run(devices[0], "--rounds", 1)
    assert gateway.wait() == 0 and back.wait() == 0


@pytest.mark.parametrize("moment", ["open", "update"])
def test_a_gateway_killed_in_a_round_goes_on_with_the_same_command(fleet: Fleet, moment: str) -> None:
    (fleet.gw / "fl-tiny.toml").write_text("epochs = 20\n")
    options = ("--rounds", 2, "--clients", 2, "--interval", 0)
    gateway = fleet.gateway(*options)
    devices = [fleet.device(f"d{i}", seed=i, samples=400) for i in range(2)]
    for directory in devices:
        (directory / "fl-tiny.toml").write_text("lan_timing = true\n")
    runs = [fleet.run(d, "--rounds", 2) for d in devices]
    if moment == "open":
        runs[0].event("round", state="joined")
    else:
        gateway.event("update")
    gateway.signal(signal.SIGKILL)
    gateway.wait()
    gateway = fleet.gateway(*options)
    assert gateway.wait() == 0
    assert [run.wait() for run in runs] == [0, 0]
    rounds = cli("gateway", "rounds", fleet.gw)
    assert [(r["number"], r["state"]) for r in rounds] == [(1, "published"), (2, "published")]
    acknowledged = sum(
        e["event"] == "update" and e["status"] in ("accepted", "duplicate") for r in runs for e in r.seen
    )
    assert acknowledged == sum(r["received"] for r in rounds)
    ledger_is_sound(fleet.gw)


def test_a_board_without_labels_takes_heads_and_declines_rounds(fleet: Fleet) -> None:
    fleet.gateway("--interval", 0, "--rounds", 2)
    worker, idle = fleet.device("worker"), fleet.device("idle", samples=0)
    silent = fleet.run(idle)
    silent.event("connected")
    busy = fleet.run(worker, "--rounds", 2)
    assert busy.wait() == 0
    silent.event("model", number=2)
    assert stop(silent) == 0
    why = "0 samples are stored, training takes 10 or more"
    assert any((e.get("state"), e.get("why")) == ("declined", why) for e in silent.seen)
    assert any("round declined" in line and why in line for line in silent.log)
    found = cli("device", "status", idle)
    assert (found["rounds"], found["declines"], found["accuracy"]["samples"]) == (0, why, 0)
    text = subprocess.run([*COMMAND, "device", "status", idle], check=True, capture_output=True, text=True).stdout
    assert why in text and "too few to tell on 0 held-out samples" in text and "{" not in text
    with np.load(fleet.root / "worker.npz") as data:
        np.savez(fleet.root / "one.npz", x=data["x"][data["y"] == 1], y=data["y"][data["y"] == 1])
    cli("samples", "add", idle, "--data", fleet.root / "one.npz")
    assert "samples of 1 class are stored" in cli("device", "status", idle)["declines"]
    exported = fleet.root / "x.tflite"
    cli("gateway", "export", fleet.gw, "--out", exported)
    assert (idle / "model/current.tflite").read_bytes() == exported.read_bytes()


def test_a_board_without_the_means_declines_says_why_and_takes_heads(fleet: Fleet) -> None:
    gateway = fleet.gateway("--clients", 2, "--interval", 0, "--rounds", 1)
    able, busy = fleet.device("able", seed=1), fleet.device("busy", seed=2)
    (busy / "fl-tiny.toml").write_text("max_load = 0.000001\n")  # this machine does something: it is above that
    waiting = fleet.run(busy)
    fleet.run(able)
    assert waiting.event("round", state="declined")["lacks"] == ["load"]
    assert gateway.wait() == 0
    waiting.event("round", state="published")
    (row,) = cli("gateway", "rounds", fleet.gw)
    assert row["received"] == 1
    assert {d["name"]: d["lacks"] for d in cli("gateway", "devices", fleet.gw)} == {"able": [], "busy": ["load"]}


def test_once_takes_part_in_what_is_open_and_ends(fleet: Fleet) -> None:
    fleet.gateway("--interval", 0)
    directory = fleet.device("d")
    once = fleet.run(directory, "--once")
    assert once.wait(40) == 0
    assert cli("device", "status", directory)["rounds"] == 1


def test_signals_end_the_daemons_at_once(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    device = fleet.run(fleet.device("d", samples=0))
    device.event("connected")
    for daemon, number, code in ((device, signal.SIGTERM, 0), (gateway, signal.SIGTERM, 0)):
        started = time.monotonic()
        daemon.signal(number)
        assert daemon.wait(10) == code
        assert time.monotonic() - started < 5
    gateway = fleet.gateway()
    gateway.signal(signal.SIGINT)
    assert gateway.wait(10) == 130


def test_a_training_device_ends_within_two_seconds_of_sigterm(fleet: Fleet) -> None:
    (fleet.gw / "fl-tiny.toml").write_text("epochs = 100\nbatch = 1\n")
    fleet.gateway("--interval", 0)
    device = fleet.run(fleet.device("d", samples=2000))
    device.event("round", state="joined")
    time.sleep(0.7)
    started = time.monotonic()
    assert stop(device) == 0
    assert time.monotonic() - started < 2


def test_revocation_acts_at_once(fleet: Fleet) -> None:
    fleet.gateway("--interval", 0, "--rounds", 5)
    kept, lost = fleet.device("kept"), fleet.device("lost", seed=1)
    device = fleet.run(lost)
    device.event("connected")
    row = cli("gateway", "revoke", fleet.gw, "lost")
    assert row["state"] == "revoked"
    assert device.wait(30) == 69
    assert fleet.run(kept, "--rounds", 5).wait() == 0
    again: Daemon = fleet.run(lost, "--once")
    assert again.wait(40) == 69
    states = {r["name"]: r["state"] for r in cli("gateway", "devices", fleet.gw)}
    assert states == {"kept": "active", "lost": "revoked"}


def test_raw_inputs_stay_out_of_the_devices_directory(fleet: Fleet) -> None:
    fleet.gateway()
    directory = fleet.device("d")
    x = np.load(fleet.root / "d.npz")["x"]
    stored = b"".join(p.read_bytes() for p in directory.rglob("*") if p.is_file())
    for row in x[:20]:
        assert row.tobytes()[:32] not in stored
    assert cli("samples", "stats", directory)["bytes"] == 60 * cli("samples", "stats", directory)["feature_shape"][-1]
    gone = cli("samples", "forget", directory, "--all")
    assert gone["forgotten"] == 60
    assert cli("samples", "stats", directory)["samples"] == 0


def test_a_board_remembers_what_computed_its_features_and_warns_when_that_changes(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.gateway()
    directory = fleet.device("d", samples=0)
    assert cli("samples", "stats", directory)["runtime"] is None
    data = np.random.default_rng(1).normal(size=(12, 8, 8, 1)).astype(np.float32)
    np.savez(fleet.root / "few.npz", x=data, y=np.arange(12) % 4)
    cli("samples", "add", directory, "--data", fleet.root / "few.npz", "--runtime", "numpy")
    assert cli("samples", "stats", directory)["runtime"] == f"numpy {np.__version__} (tflite rounding)"
    for runtime, warnings in (("numpy", 0), ("numpy:litert", 1), (None, 1)):
        caplog.clear()
        with closing(Device.open(directory, runtime=runtime)) as device:
            device.learn(data, np.arange(12) % 4)
            known = device.runtime == f"numpy {np.__version__} (tflite rounding)"
        assert len(caplog.records) == (0 if known else warnings)
    cli("samples", "forget", directory, "--all")
    (directory / "fl-tiny.toml").write_text('runtime = "numpy:litert"\n')
    cli("samples", "add", directory, "--data", fleet.root / "few.npz")
    assert "litert rounding" in cli("samples", "stats", directory)["runtime"]
    labels = cli("predict", directory, "--data", fleet.root / "few.npz", "--runtime", "numpy")["labels"]
    assert labels == cli("predict", directory, "--data", fleet.root / "few.npz")["labels"]


@pytest.mark.parametrize("name", ["tflite", "litert"])
def test_a_runtime_that_is_not_there_starts_no_daemon(fleet: Fleet, name: str) -> None:
    if installed(name):
        pytest.skip(f"{name} is installed here")
    fleet.gateway()
    assert "pip install" in cli("device", "run", fleet.device("d", samples=0), "--runtime", name, code=69)
