# SPDX-License-Identifier: Apache-2.0
"""An exact start over real processes: the first head is what all samples in one place give, kills and exits apart."""

from __future__ import annotations

import hashlib
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fl_tiny.learn import exact, gram
from fl_tiny.learn.head import head_spec, read_parameters
from fl_tiny.learn.tflite import read_model
from fl_tiny.protocol.update import decode_head, encode_head
from fl_tiny.protocol.wire import MAX_CODES

from .fleet import MODEL, Fleet, cli, stop

EXACT = ("--start", "exact", "--interval", 0)


def head_of(directories: list[Path]) -> bytes:
    """The head that the devices' samples determine, no device counted for more than the median one has."""
    spec = head_spec(read_model(MODEL.read_bytes()), 2)
    base = decode_head(encode_head(read_parameters(spec)), spec.tensors)
    plan = exact.plan(spec, bytes(32), MAX_CODES)
    every = []
    for directory in directories:
        with sqlite3.connect(directory / "state.db") as db:
            rows = db.execute("SELECT features, label FROM sample WHERE held=0").fetchall()
        features = np.array([np.frombuffer(codes, np.int8) for codes, _ in rows])
        every.append(gram.summed(spec, base, plan, features, np.array([label for _, label in rows])))
    most = sorted(sums.samples for sums in every)[(len(every) - 1) // 2]
    total = gram.Sums(np.zeros_like(every[0].gram), np.zeros_like(every[0].moments))
    for sums in every:
        total = total.plus(sums, (256 * min(sums.samples, most) // sums.samples) / 256)
    return encode_head(exact.exact_head(spec, base, plan, total).params).body


def heads(directory: Path) -> dict[int, bytes]:
    with sqlite3.connect(directory / "state.db") as db:
        return dict(db.execute("SELECT number, body FROM version"))


def test_the_first_head_is_solved_and_the_second_is_trained_from_it(fleet: Fleet) -> None:
    gateway = fleet.gateway(*EXACT, "--rounds", 2, "--clients", 3)
    devices = [fleet.device(f"d{i}", samples=n, seed=i) for i, n in enumerate((620, 600, 900))]
    runs = [fleet.run(d, "--rounds", 2) for d in devices]
    assert gateway.wait() == 0
    assert [run.wait() for run in runs] == [0, 0, 0]
    rounds = cli("gateway", "rounds", fleet.gw)
    assert [(r["kind"], r["state"], r["received"]) for r in rounds] == [
        ("exact", "published", 3),
        ("train", "published", 3),
    ]
    assert rounds[1]["loss"] < rounds[0]["loss"], "the second round began with the solved head"
    assert heads(fleet.gw)[1] == head_of(devices)
    assert heads(fleet.gw)[2] != heads(fleet.gw)[1]
    exported = fleet.root / "x.tflite"
    cli("gateway", "export", fleet.gw, "--out", exported)
    test = fleet.data("test", 200, 77)
    assert cli("model", "evaluate", exported, "--data", test)["accuracy"] > 0.8
    assert [row["outlier"] for row in cli("gateway", "devices", fleet.gw)] == [None] * 3, "three are too few to compare"


@pytest.mark.parametrize("moment", ["open", "update"])
def test_a_gateway_killed_in_an_exact_start_goes_on_with_the_same_command(fleet: Fleet, moment: str) -> None:
    options = (*EXACT, "--rounds", 1, "--clients", 2)
    gateway = fleet.gateway(*options)
    devices = [fleet.device(f"d{i}", samples=600, seed=i) for i in range(2)]
    for directory in devices:
        (directory / "fl-tiny.toml").write_text("lan_timing = true\n")
    runs = [fleet.run(d, "--rounds", 1) for d in devices]
    if moment == "open":
        runs[0].event("round", state="joined")
    else:
        gateway.event("update")
    gateway.signal(signal.SIGKILL)
    gateway.wait()
    assert fleet.gateway(*options).wait() == 0
    assert [run.wait() for run in runs] == [0, 0]
    assert [(r["kind"], r["state"], r["received"]) for r in cli("gateway", "rounds", fleet.gw)] == [
        ("exact", "published", 2)
    ]
    assert heads(fleet.gw)[1] == head_of(devices)


def test_a_device_with_too_few_samples_declines_an_exact_start(fleet: Fleet) -> None:
    (fleet.gw / "fl-tiny.toml").write_text('start = "exact"\nmin_samples = 500\n')
    gateway = fleet.gateway("--interval", 0, "--rounds", 1)
    few, many = fleet.device("few", samples=580), fleet.device("many", samples=700, seed=1)
    shy, run = fleet.run(few), fleet.run(many, "--rounds", 1)
    shy.event("round", number=1, state="declined")
    assert gateway.wait() == 0 and run.wait() == 0
    assert heads(fleet.gw)[1] == head_of([many])


@pytest.mark.parametrize("running", [True, False])
def test_a_forgotten_device_leaves_the_head_as_if_it_had_never_been_there(fleet: Fleet, running: bool) -> None:
    gateway = fleet.gateway(*EXACT, "--rounds", 2, "--clients", 3)
    devices = [fleet.device(f"d{i}", samples=600 + 20 * i, seed=i) for i in range(3)]
    runs = [fleet.run(d, "--rounds", 2) for d in devices]
    assert gateway.wait() == 0
    assert [run.wait() for run in runs] == [0, 0, 0]
    if running:
        gateway = fleet.gateway("--interval", 3600)
    gone = cli("gateway", "forget", fleet.gw, "d1")
    assert gone == {"id": gone["id"], "state": "revoked", "round": 3}
    assert heads(fleet.gw)[3] == head_of([devices[0], devices[2]])
    assert cli("gateway", "forget", fleet.gw, "d1") == gone, "asked again it says the same"
    states = {r["name"]: r["state"] for r in cli("gateway", "devices", fleet.gw)}
    assert states == {"d0": "active", "d1": "revoked", "d2": "active"}
    if running:
        told = fleet.run(devices[0])
        told.event("round", number=3, state="published")
        assert stop(told) == 0 and stop(gateway) == 0
        assert fleet.run(devices[1], "--once").wait(40) == 69
    else:  # the ledger is sound, and rounds go on from the new head
        assert cli("gateway", "status", fleet.gw)["head"] == hashlib.sha256(heads(fleet.gw)[3]).hexdigest()
        gateway = fleet.gateway("--interval", 0, "--rounds", 4)
        assert fleet.run(devices[2], "--rounds", 3).wait() == 0 and gateway.wait() == 0
    with sqlite3.connect(fleet.gw / "state.db") as db:
        assert db.execute("SELECT count(*) FROM gram").fetchone() == (2,)


def test_a_forgotten_device_is_in_no_residual_either(fleet: Fleet) -> None:
    gateway = fleet.gateway(*EXACT, "--rounds", 2, "--clients", 2)
    devices = [fleet.device(f"d{i}", samples=600, seed=i) for i in range(2)]
    runs = [fleet.run(d, "--rounds", 2) for d in devices]
    assert gateway.wait() == 0 and [run.wait() for run in runs] == [0, 0]
    assert residuals(devices[0]) == 1
    cli("gateway", "forget", fleet.gw, "d1")
    gateway = fleet.gateway("--interval", 3600, "--clients", 2)  # the other one never comes: no round opens
    told = fleet.run(devices[0])
    told.event("round", number=3, state="published")
    told.event("model", number=3)
    assert stop(told) == 0 and stop(gateway) == 0
    assert residuals(devices[0]) == 0


def residuals(directory: Path) -> int:
    with sqlite3.connect(directory / "state.db") as db:
        return int(db.execute("SELECT count(*) FROM residual").fetchone()[0])


def test_what_training_learned_cannot_be_forgotten_exactly(fleet: Fleet) -> None:
    gateway = fleet.gateway("--interval", 0, "--rounds", 1)
    device = fleet.device("d")
    assert fleet.run(device, "--rounds", 1).wait() == 0 and gateway.wait() == 0
    line = cli("gateway", "forget", fleet.gw, "d", code=65)
    assert "no exact start" in line and "gateway revoke" in line
    assert cli("gateway", "devices", fleet.gw)[0]["state"] == "active"
