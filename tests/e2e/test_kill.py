# SPDX-License-Identifier: Apache-2.0
"""The short form of tests/link/test_kill.py: a kill in each of three rounds."""

from __future__ import annotations

from pathlib import Path

from ..link.light import Kill
from ..link.test_kill import killed


def test_a_gateway_killed_once_a_round_ends_in_the_heads_of_a_quiet_run(tmp_path: Path) -> None:
    killed(tmp_path, 5, [Kill(1, "receive.commit", 2), Kill(2, "publish.before", 1), Kill(3, "receive.after", 1)])
