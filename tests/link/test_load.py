# SPDX-License-Identifier: Apache-2.0
"""A hundred devices, and with --full a thousand: all are served in the time and memory of the issue."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def load(devices: int, head: str, encoding: str) -> dict[str, object]:
    words = ["simulate", "--devices", devices, "--head", head, "--encoding", encoding, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "fl_tiny", *map(str, words)], stdout=subprocess.PIPE, text=True, timeout=600, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    print(f"Shows 6: {json.dumps(found)}")
    return found


@pytest.mark.parametrize(("head", "encoding"), [("64x10", "int8"), ("1280x10", "int4"), ("1280x10", "topk")])
def test_a_hundred_devices_are_served(head: str, encoding: str) -> None:
    found = load(100, head, encoding)
    assert found["updates"] == [100] and found["refused"] == 0


@pytest.mark.full
@pytest.mark.parametrize(("head", "encoding", "seconds"), [("64x10", "int8", 30), ("1280x10", "int4", 120)])
def test_a_thousand_devices_are_served(head: str, encoding: str, seconds: int) -> None:
    found = load(1000, head, encoding)
    assert found["updates"] == [1000] and found["refused"] == 0
    assert found["rounds_s"][0] + found["fetched_s"][0] <= seconds and found["rss_mib"] <= 256  # type: ignore[index, operator]
