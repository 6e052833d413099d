# SPDX-License-Identifier: Apache-2.0
"""What every way of shipping rests on: the wheel holds all that the package needs at run time."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import footprint  # noqa: E402 - a script, not a package


def test_the_wheel_holds_every_module_and_data_file(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        check=True,
        timeout=300,
    )
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    kept = [path for path in (ROOT / "fl_tiny").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT)) for path in kept} <= names


def test_the_page_tells_what_each_way_takes() -> None:
    table = footprint.PAGE.read_text().split(footprint.BEGIN)[1].split(footprint.END)[0]
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        f"| {name}" for name, _ in footprint.WAYS.values()
    ]


def test_a_footprint_is_of_a_device_that_took_part(tmp_path: Path) -> None:
    row = footprint.measure("pip", tmp_path)
    assert row.runtime and row.own_mb < row.whole_mb
    assert row.idle_mib < row.training_mib < 64, "the training child is the larger one, and below the mission's bound"
    assert 0 < row.timer_mib_h < row.resident_mib_h
