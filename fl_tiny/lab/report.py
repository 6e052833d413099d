# SPDX-License-Identifier: Apache-2.0
"""A demo's figures as one self-contained page, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from fl_tiny import statedir
from fl_tiny.lab.measure import Result, device_rows, summary


def write(result: Result, page: Path, figures: Path) -> None:
    """Write both."""
    found = {**summary(result), "by_device": device_rows(result), "by_round": result.rounds, "by_labels": result.sweep}
    statedir.write_atomic(figures, (json.dumps(found, indent=1) + "\n").encode(), 0o644)
