# SPDX-License-Identifier: Apache-2.0
"""Extras live together: whichever are installed in whichever order, a model runs; what cannot is passed over."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests/models/bench/head_64x10.tflite"
EXTRAS = ("tflite", "gateway", "model", "data", "audio", "discovery")
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
RUN = """
import sys, numpy as np
from fl_tiny.device.backbone import open_backbone
backbone = open_backbone(open(sys.argv[1], "rb").read())
assert backbone.run(np.zeros((3, 8, 8, 1), np.int8)).shape == (3, 10)
print(backbone.name)
"""


def python(version: str) -> str:
    """An interpreter of this version, or the test is skipped."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"Python {version} is not here")
    return found


def installed(home: Path, interpreter: str, *extras: str) -> Path:
    """A virtual environment in which these extras were installed, one after the other."""
    subprocess.run([interpreter, "-m", "venv", home], check=True, timeout=120)
    for extra in extras:
        pip = [home / "bin/pip", "install", "--quiet", "--disable-pip-version-check", f"{ROOT}[{extra}]"]
        subprocess.run(pip, check=True, timeout=900, capture_output=True)
    return home / "bin"


def runs_a_model(bin: Path) -> tuple[str, str]:
    """The runtime that a model runs with, and what stderr says; a command inspects the model, too."""
    done = subprocess.run([bin / "python", "-c", RUN, MODEL], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    seen = subprocess.run(
        [bin / "fl-tiny", "model", "inspect", MODEL, "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert seen.returncode == 0 and json.loads(seen.stdout)["runtime"] == done.stdout.strip(), seen.stderr
    assert len(seen.stderr.strip().split("\n")) <= 1, "one line at most"
    return done.stdout.strip(), seen.stderr


def test_readmes_order_of_extras_leaves_a_runtime_that_works(tmp_path: Path) -> None:
    bin = installed(tmp_path / "venv", sys.executable, "tflite,gateway", "model")
    name, said = runs_a_model(bin)
    assert name.startswith(("ai-edge-litert", "tflite-runtime"))
    assert ("passed over" in said) == (sys.version_info < (3, 12) and name.startswith("ai-edge-litert"))


@pytest.mark.full
@pytest.mark.parametrize("pair", list(itertools.combinations(EXTRAS, 2)), ids="-".join)
@pytest.mark.parametrize("version", VERSIONS)
def test_each_pair_of_extras_lives_together(tmp_path: Path, version: str, pair: tuple[str, str]) -> None:
    runs_a_model(installed(tmp_path / "venv", python(version), *pair))
