# SPDX-License-Identifier: Apache-2.0
"""What container images are made of is named by its hash: base images, and each file from PyPI for each board."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy/container"
MACHINES = ("x86_64", "aarch64", "armv7l")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def requirements(file: Path) -> list[str]:
    """One line each."""
    text = re.sub(r"\\\n\s*", "", file.read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def faults(folder: Path) -> list[str]:
    """What is not pinned in the folder of a Containerfile."""
    found = []
    for file in sorted(folder.glob("*.txt")):
        for line in requirements(file):
            if not re.match(r"[a-z0-9-]+==[0-9][\w.]* ", line) or not HASH.search(line):
                found.append(f"{file.name}: {line}")
    text = (folder / "Containerfile").read_text()
    stages = set(re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE)) | {"scratch", "${BASE}"}
    bases = re.findall(r"^FROM (?:--\S+ )*(\S+)", text, re.MULTILINE) + re.findall(
        r"^ARG BASE=(\S+)", text, re.MULTILINE
    )
    found += [base for base in bases if base not in stages and not re.search(r"@sha256:[0-9a-f]{64}$", base)]
    for line in (folder / "assemble.py").read_text().splitlines():
        if re.search(r'"-r"', line) and "*pinned" not in line:
            found.append(line)
    return found


def test_everything_that_an_image_is_made_of_is_pinned_by_hash() -> None:
    assert faults(CONTAINER) == []
    assert '"--require-hashes"' in (CONTAINER / "assemble.py").read_text()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("gateway.txt", r"==[\d.]+", ">=0"),
        ("device.txt", r" \\\n\s*--hash=\S+", ""),
        ("Containerfile", r"@sha256:\S+", ""),
    ],
)
def test_a_missing_pin_is_seen(tmp_path: Path, file: str, old: str, new: str) -> None:
    for path in CONTAINER.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / file).write_text(re.sub(old, new, (tmp_path / file).read_text()))
    assert len(faults(tmp_path)) >= 1


@pytest.mark.full
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("role", ["device", "gateway", "build"])
def test_the_registry_has_what_the_pins_name_for_each_board(tmp_path: Path, machine: str, role: str) -> None:
    tags = [f"--platform=manylinux{tag}_{machine}" for tag in ("_2_34", "_2_28", "_2_17", "2014")]
    words = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
    command = [sys.executable, "-m", "pip", "download", "-q", *words, *tags, "-d", tmp_path]
    done = subprocess.run([*command, "-r", CONTAINER / f"{role}.txt"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == len(requirements(CONTAINER / f"{role}.txt"))
