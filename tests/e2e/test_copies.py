# SPDX-License-Identifier: Apache-2.0
"""State folders that are copied by ``cp -a``, and daemons of both: whenever it was done, both go into quarantine."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from .fleet import Fleet, cli, stop

SEEN_S = 40.0  # a poll of ten seconds, a stale session, a handshake


def copied(board: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", board, to], check=True)
    return to


def board_of(fleet: Fleet) -> Path:
    fleet.gateway("--interval", 150)  # an idle device polls every ten seconds
    board = fleet.device("board", samples=0)
    (board / "fl-tiny.toml").write_text("lan_timing = true\n")
    return board


def is_seen(fleet: Fleet) -> None:
    """Asserts that the operator's list says so within seconds."""
    until = time.monotonic() + SEEN_S
    while (row := cli("gateway", "devices", fleet.gw)[0])["state"] != "quarantined":
        assert time.monotonic() < until, "the copy runs unseen"
        time.sleep(0.5)
    assert row["trouble"]


@pytest.mark.slow
def test_a_copy_of_a_running_device_is_seen_though_it_counts_one_start_more(fleet: Fleet) -> None:
    board = board_of(fleet)
    fleet.run(board).event("connected")
    fleet.run(copied(board, fleet.root / "copy")).event("connected")
    is_seen(fleet)


@pytest.mark.slow
def test_a_copy_that_starts_before_the_original_is_seen_when_that_comes_back(fleet: Fleet) -> None:
    board = board_of(fleet)
    first = fleet.run(board)
    first.event("connected")
    assert stop(first) == 0
    copy = copied(board, fleet.root / "copy")
    for _ in range(2):  # it has counted further than the original by then
        run = fleet.run(copy)
        run.event("connected")
        assert stop(run) == 0
    fleet.run(copy).event("connected")
    assert cli("gateway", "devices", fleet.gw)[0]["state"] == "active", "a folder that was moved is no copy"
    fleet.run(board)
    is_seen(fleet)


@pytest.mark.slow
def test_copies_that_run_in_turn_and_never_at_once_are_seen(fleet: Fleet) -> None:
    board = board_of(fleet)
    copy = copied(board, fleet.root / "copy")  # made before the first start: neither has ever counted
    assert fleet.run(board, "--once").wait(40) in (0, 69)  # 69: no round was there for it
    fleet.run(copy, "--once").wait(40)
    is_seen(fleet)


@pytest.mark.slow
def test_a_device_that_loses_its_power_and_its_gateway_again_and_again_is_no_copy(fleet: Fleet) -> None:
    board = board_of(fleet)
    daemon = fleet.run(board)
    daemon.event("connected")
    for _ in range(2):
        daemon.end()  # SIGKILL
        daemon = fleet.run(board)
        daemon.event("connected")
        stop(fleet.daemons[0])
        fleet.daemons[0] = fleet.gateway("--interval", 150)
        fleet.daemons.pop()
    until = time.monotonic() + SEEN_S
    while (row := cli("gateway", "devices", fleet.gw)[0])["last_seen_s"] is None or row["last_seen_s"] > 5:
        assert time.monotonic() < until
        time.sleep(0.5)
    assert row["state"] == "active" and row["trouble"] is None
