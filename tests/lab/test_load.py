# SPDX-License-Identifier: Apache-2.0
"""A gateway under many devices: all of them are served, and nothing is left running."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "fl_tiny", "simulate", "--json"]


@pytest.mark.parametrize("encoding", ["int4", "topk"])
def test_twenty_devices_take_part_in_rounds(encoding: str) -> None:
    words = ["--devices", "20", "--rounds", "2", "--encoding", encoding]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert found["updates"] == [20, 20] and found["refused"] == 0
    assert len(found["rounds_s"]) == 2 and found["connecting_s"] > 0 and 10 < found["rss_mib"] < 256


def test_ctrl_c_ends_gateway_and_devices() -> None:
    run = subprocess.Popen([*COMMAND, "--devices", "60", "--rounds", "50"], stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if " 60 of 60 connected" in line:
            break
    run.send_signal(signal.SIGINT)
    assert run.wait(20) == 130
    run.stderr.close()
    time.sleep(0.2)
    assert not _children_of(run.pid)


def _children_of(folder_of: int) -> list[str]:
    """Commands that were started by a process, in sessions of their own, and that are still there."""
    found = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if line.split()[0] == str(folder_of) or "fl-tiny-load-" in line]
