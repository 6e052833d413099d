# SPDX-License-Identifier: Apache-2.0
"""A fleet speaks up: wrong labels stand out in rounds of training, and what an update counted is shown."""

from __future__ import annotations

import numpy as np

from .fleet import Fleet, cli

ROUNDS = 4


def test_a_board_with_wrong_labels_stands_out_and_the_operator_is_told(fleet: Fleet) -> None:
    gateway = fleet.gateway("--rounds", ROUNDS, "--clients", 6, "--interval", 0)
    honest = [fleet.device(f"d{i}", samples=80, seed=i) for i in range(5)]
    bad = fleet.device("bad", samples=0)
    data = np.load(fleet.data("bad", 80, 9))
    wrong = fleet.root / "wrong.npz"
    np.savez(wrong, x=data["x"], y=np.random.default_rng(3).permutation(data["y"]))
    cli("samples", "add", bad, "--data", wrong)
    runs = [fleet.run(d, "--rounds", ROUNDS) for d in (*honest, bad)]
    assert gateway.wait(120) == 0 and [run.wait() for run in runs] == [0] * 6
    rows = {row["name"]: row for row in cli("gateway", "devices", fleet.gw)}
    assert rows["bad"]["outlier"] > 3 > max(rows[f"d{i}"]["outlier"] for i in range(5))
    assert all(0 < row["counted"] <= 1 and 0 < row["weight"] <= row["samples"] for row in rows.values())
    notices = cli("gateway", "status", fleet.gw)["notices"]
    assert len(notices) == 1 and notices[0].startswith("bad stands out")
    assert sum(e["event"] == "notice" for e in gateway.seen) == 1, "once while it lasts"
    assert any("notice why='bad stands out" in line for line in gateway.log)
    learning = next(c for c in cli("gateway", "doctor", fleet.gw) if c["check"] == "learning")
    assert learning["state"] == "warn" and "bad stands out" in str(learning)
