# SPDX-License-Identifier: Apache-2.0
"""What tests of image/layers share: the linters that scripts/test-layers installs, and facts that layers repeat."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fl_tiny

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LAYERS = ROOT / "image/layers"
HELPERS = Path(__file__).parent / "layers"
UNITS = ROOT / "deploy/systemd"
VERSION = fl_tiny.__version__
PYTHON = ROOT / "build/layers/bin/python"
# Units with an [Install] that no layer enables: they stand instead of another one.
NOT_ENABLED = {"fl-tiny-device.timer"}
# What the Python Package Index calls otherwise, or what no layer needs since its Python is 3.11 or newer.
NOT_NEEDED = {"tomli"}


def linters() -> Path:
    """The Python that has the linters; skips the test where there is none."""
    if not (ROOT / "build/layers/installed").exists():
        pytest.skip("the linters are not installed: scripts/test-layers does it")
    return PYTHON


def run(*words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a bare environment."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(cwd), **environment}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300
    )


def helper(name: str, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts in tests/image/layers by the Python that has the linters."""
    return run(linters(), HELPERS / name, *words, **environment)


def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def needed() -> dict[str, str]:
    """The packages that fl-tiny cannot do without, and the least version of each."""
    found = {}
    for line in project()["dependencies"]:
        name, least = re.match(r"([a-z0-9]+)[~>]=([0-9.]+)", line).groups()
        if name not in NOT_NEEDED:
            found[name] = least
    assert found
    return found


def units() -> dict[str, str]:
    """Units and their drop-ins, by their paths below deploy/systemd, with their text."""
    found = {str(path.relative_to(UNITS)): path.read_text() for path in UNITS.rglob("fl-tiny-*") if path.is_file()}
    found |= {str(path.relative_to(UNITS)): path.read_text() for path in UNITS.glob("fl-tiny-*.d/*")}
    assert "fl-tiny-device.service" in found and "fl-tiny-.service.d/hardened.conf" in found
    return {name: text for name, text in found.items() if name.split("/")[0] not in ("tmpfiles.d", "sysusers.d")}


def tmpfiles() -> dict[str, str]:
    """What systemd-tmpfiles is told, by files of deploy/systemd/tmpfiles.d."""
    return below(UNITS / "tmpfiles.d")


def board() -> dict[str, str]:
    """What makes a board's network follow provisioning: files of our images' overlay, by paths below /etc."""
    etc = ROOT / "image/overlay/etc"
    names = ("systemd/network/80-fl-tiny.network", "udev/rules.d/70-fl-tiny-wifi.rules")
    drop_in = "systemd/system/wpa_supplicant@.service.d/fl-tiny.conf"
    return {name: (etc / name).read_text() for name in (*names, drop_in)}


def below(folder: Path) -> dict[str, str]:
    """The files below a folder, by their paths, with their text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
