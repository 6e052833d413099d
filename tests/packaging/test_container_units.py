# SPDX-License-Identifier: Apache-2.0
"""The compose file and the quadlets, read by podman-compose and by podman's own generator; nothing is started."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fl_tiny.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "deploy/container"
CACHE = ROOT / "build/container-units"
COMPOSE = "podman-compose==1.6.0"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
WHERE = ("apt-get", "indextargets", "--format", "$(SITE)", "Identifier: Packages", "Label: Debian")

pytestmark = pytest.mark.full


def done(*command: object, **env: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    found = {**os.environ, **env}
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=found)


@pytest.fixture(scope="module")
def quadlet() -> Path:
    """Podman 5's generator, out of Debian 13's package; Debian 12's podman has none."""
    found = CACHE / "podman/usr/libexec/podman/quadlet"
    if found.exists():
        return found
    if shutil.which("dpkg-deb") is None:
        pytest.skip("not here: apt and dpkg, to get Debian 13's podman")
    for name in ("lists/partial", "cache/archives/partial"):
        (CACHE / name).mkdir(parents=True, exist_ok=True)
    (CACHE / "status").touch()
    site = done(*WHERE).stdout.split("\n")[0]  # this machine's mirror of Debian
    (CACHE / "sources.list").write_text(f"deb [signed-by={KEYS}] {site} trixie main\n")
    places = {
        "Dir::Etc::sourcelist": CACHE / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": CACHE / "lists",
        "Dir::State::status": CACHE / "status",
        "Dir::Cache": CACHE / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in places.items())]
    package = "cd " + shlex.quote(str(CACHE)) + " && " + shlex.join(apt) + " download podman && ls podman_*.deb"
    if done(*apt, "update").returncode or (got := done("sh", "-c", package)).returncode:
        pytest.skip("not to be had: Debian 13's podman")
    done("dpkg-deb", "-x", CACHE / got.stdout.split()[-1], CACHE / "podman")
    return found


def test_podman_makes_services_of_the_quadlets(quadlet: Path) -> None:
    made = done(quadlet, "-dryrun", QUADLET_UNIT_DIRS=str(PLACE / "quadlet"))
    assert made.returncode == 0, made.stderr
    starts = {
        role: next(line for line in made.stdout.split("\n") if "podman run" in line and f"fl-tiny-{role}:" in line)
        for role in ("device", "gateway")
    }
    for role, line in starts.items():
        for word in ("--read-only", "--cap-drop all", "no-new-privileges", f"systemd-fl-tiny-{role}:/var/lib/fl-tiny"):
            assert word in line
    assert "--network host" in starts["gateway"]


def test_the_compose_file_is_read_and_its_commands_are_ones_that_fl_tiny_has(tmp_path: Path) -> None:
    tool = CACHE / "venv/bin/podman-compose"
    if not tool.exists():
        subprocess.run([sys.executable, "-m", "venv", CACHE / "venv"], check=True, timeout=120)
        if done(CACHE / "venv/bin/pip", "install", "-q", COMPOSE).returncode:
            pytest.skip(f"not to be had: {COMPOSE}")
    for name in ("compose.yaml", "Containerfile"):
        shutil.copy(PLACE / name, tmp_path / name)
    (tmp_path / "code.txt").write_text("FL1:…\n")
    read = done(tool, "-f", tmp_path / "compose.yaml", "--profile=gateway", "--profile=device", "config")
    assert read.returncode == 0, read.stderr
    code = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    words = [str(CACHE / "venv/bin/python"), "-c", code]
    services = json.loads(subprocess.run(words, input=read.stdout, capture_output=True, text=True, check=True).stdout)
    services = services["services"]
    assert set(services) == {"init", "gateway", "enroll", "device"}
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        if "command" in service:
            build_parser().parse_args(service["command"])
