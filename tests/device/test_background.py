# SPDX-License-Identifier: Apache-2.0
"""A training child in the background runs in the idle classes of CPU and I/O, as the kernel itself reports them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fl_tiny.device.child import command

PATIENCE_S = 30


@pytest.mark.skipif(shutil.which("ionice") is None, reason="ionice is not installed")
@pytest.mark.parametrize("background", [True, False])
def test_a_child_in_the_background_has_idle_classes(tmp_path: Path, background: bool) -> None:
    child = subprocess.Popen(command(tmp_path, background=background), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:  # it waits for its job, so there is time to look
        until = time.monotonic() + (PATIENCE_S if background else 0.5)
        while os.sched_getscheduler(child.pid) != os.SCHED_IDLE and time.monotonic() < until:
            time.sleep(0.05)
        told = subprocess.run(["ionice", "-p", str(child.pid)], capture_output=True, text=True, check=True).stdout
        assert (os.sched_getscheduler(child.pid) == os.SCHED_IDLE, "idle" in told) == (background, background)
    finally:
        child.kill()
        child.communicate()
