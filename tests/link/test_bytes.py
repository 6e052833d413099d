# SPDX-License-Identifier: Apache-2.0
"""What a day costs on the wire, and what the codecs cost in accuracy: the figures of scripts/bench."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_tiny.lab import encodings

BENCH = Path(__file__).parents[2] / "scripts/bench.py"
ROUND_BYTES, DAY_BYTES = 16_384, 400_000
POINT = 0.01


def bench(part: str, limit_s: float) -> Any:
    done = subprocess.run(
        [sys.executable, BENCH, "--only", part], stdout=subprocess.PIPE, text=True, timeout=limit_s, check=True
    )
    return json.loads(done.stdout)


def test_a_day_of_hourly_rounds_of_a_wide_head_is_small() -> None:
    day = bench("day", 600)["day"]
    up, down = day["round"]["up"], day["round"]["down"]
    print(f"Shows 7: 1280x10 by int4 and deltas: a round {up} + {down} B, the dearest {day['worst_round']} B, ", end="")
    print(f"a day of 24 with handshakes and heartbeats {day['bytes']} B")
    assert day["worst_round"] <= ROUND_BYTES and day["bytes"] <= DAY_BYTES


def test_int4_costs_at_most_a_point_on_the_demos_arms() -> None:
    found = encodings.compare(encodings.watches(), (1,))
    print(
        f"Shows 7: accuracy, the demo's arms, one seed: { ({name: each['accuracy'] for name, each in found.items()}) }"
    )
    assert found["int4"]["accuracy"] >= found["float32"]["accuracy"] - POINT


@pytest.mark.full
def test_int4_costs_at_most_a_point_on_all_benches() -> None:
    for clients, found in bench("encodings", 7200)["encodings"].items():
        accuracy = {name: each["accuracy"] for name, each in found.items()}
        print(f"Shows 7: accuracy, {clients}: {accuracy}")
        assert accuracy["int4"] >= accuracy["float32"] - POINT
