# SPDX-License-Identifier: Apache-2.0
"""The Debian packages in real Debian roots: built twice alike, installed, a round trained, removed, purged."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.fleet import Fleet, cli

from . import debian

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(bool(debian.missing()), reason=f"no Debian root here: {debian.missing()}")
DEV = "/var/lib/fl-tiny/device"
# Suite, architecture, and the runtime that a device has there when all that fits is installed.
ROOTS = [
    pytest.param("bookworm", "amd64", "tflite-runtime 2.14.0", id="bookworm-amd64"),
    pytest.param("trixie", "amd64", "numpy", id="trixie-amd64", marks=pytest.mark.full),
    pytest.param("bookworm", "arm64", "tflite-runtime 2.14.0", id="bookworm-arm64", marks=pytest.mark.full),
    pytest.param("trixie", "arm64", "numpy", id="trixie-arm64", marks=pytest.mark.full),
]
EMULATED_S = 600.0  # under qemu-user each command takes some seconds


@pytest.fixture(scope="module")
def debs() -> Path:
    return debian.build_debs()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path / "fleet")
    yield found
    found.end()
    for each in tmp_path.glob("root"):
        shutil.rmtree(each)


def test_two_builds_of_a_commit_are_the_same_bytes(debs: Path, tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/deb", tmp_path], check=True, timeout=300, stdout=subprocess.DEVNULL)
    first, second = ({path.name: path.read_bytes() for path in each.glob("*.deb")} for each in (debs, tmp_path))
    assert len(first) == 5 and first == second


@pytest.mark.parametrize(("suite", "arch", "runtime"), ROOTS)
def test_a_board_installs_enrols_trains_and_removes(
    fleet: Fleet, tmp_path: Path, debs: Path, suite: str, arch: str, runtime: str
) -> None:
    why = debian.cannot_run(arch)
    if why:
        pytest.skip(why)
    root = debian.make_root(tmp_path / "root", suite, arch)
    tflite = runtime.startswith("tflite")
    debian.install(root, "fl-tiny")
    if tflite:
        debian.install(root, "fl-tiny-tflite", arch=arch)

    def run(*words: object, code: int | None = 0) -> str:
        return debian.inside(root, *words, code=code, patience=EMULATED_S)

    def report(*words: object, code: int = 0) -> Any:
        return json.loads(run("fl-tiny", *words, "--json", code=code))

    assert run("systemctl", "is-enabled", "fl-tiny-device").strip() == "enabled"
    assert "fl-tiny" in run("stat", "-c", "%U", DEV)
    failed = [row for row in report("device", "doctor", DEV, code=1) if row["state"] == "fail"]
    assert [row["check"] for row in failed] == ["enrolled"]
    gateway = fleet.gateway("--rounds", 1, "--clients", 1, "--interval", 0, "--deadline", 600)
    code = cli("gateway", "pair", fleet.gw)["code"]
    report("device", "enroll", DEV, "--code", code, "--name", "board")
    shutil.copy(fleet.data("board", 60, 1), root / "d.npz")
    assert report("samples", "add", DEV, "--data", "/d.npz")["added"] == 60
    assert report("samples", "stats", DEV)["runtime"].startswith(runtime)
    states = {row["check"]: row["state"] for row in report("device", "doctor", DEV)}
    assert states["gateway"] == states["model"] == states["openssl"] == states["samples"] == "ok"
    run("fl-tiny", "device", "run", DEV, "--rounds", 1, "--background")
    assert gateway.wait() == 0
    (row,) = cli("gateway", "rounds", fleet.gw)
    assert (row["state"], row["received"]) == ("published", 1)
    assert report("predict", DEV, "--data", "/d.npz")["labels"]
    owners = run("find", DEV, "!", "-user", "fl-tiny")
    assert owners == "", f"what root's commands made is not the service's: {owners}"

    run("dpkg", "--remove", *(["fl-tiny-tflite"] if tflite else []), "fl-tiny")
    assert (root / DEV[1:] / "state.db").exists() and not (root / "usr/lib/fl-tiny").exists()
    assert not list((root / "etc/systemd/system").rglob("*fl-tiny*"))
    run("dpkg", "--purge", "fl-tiny")
    assert not (root / "var/lib/fl-tiny").exists()


@pytest.mark.parametrize("suite", ["bookworm", pytest.param("trixie", marks=pytest.mark.full)])
def test_a_gateway_serves_its_page_by_the_distributions_libraries(debs: Path, tmp_path: Path, suite: str) -> None:
    root = debian.make_root(tmp_path / "root", suite)
    debian.install(root, "fl-tiny", "fl-tiny-gateway")
    shutil.copy(ROOT / "tests/models/bench/head_224-16-4.tflite", root / "model.tflite")
    directory = "/var/lib/fl-tiny/gateway"
    debian.inside(root, "fl-tiny", "gateway", "init", directory, "--model", "/model.tflite")
    script = (
        "import json, subprocess, sys, urllib.request\n"
        f"words = ['fl-tiny', 'gateway', 'run', '{directory}', '--bind', '127.0.0.1:0', '--web', '127.0.0.1:0']\n"
        "gateway = subprocess.Popen([*words, '--json'], stdout=subprocess.PIPE, text=True)\n"
        "events = [json.loads(gateway.stdout.readline()) for _ in range(2)]\n"
        "uri = next(event['uri'] for event in events if event['event'] == 'web')\n"
        "print(urllib.request.urlopen(uri.rstrip('/') + '/state.json').read().decode())\n"
        "gateway.terminate()\n"
        "sys.exit(gateway.wait())\n"
    )
    state = json.loads(debian.inside(root, "python3", "-c", script))
    assert state["status"]["state"] == "idle"
    shutil.rmtree(root)


@pytest.mark.skipif(not shutil.which("apt-ftparchive"), reason="apt-ftparchive (apt-utils) is not installed")
def test_apt_takes_everything_from_a_signed_repository_and_nothing_from_a_changed_one(
    debs: Path, tmp_path: Path
) -> None:
    root = debian.make_root(tmp_path / "root", "bookworm")
    repo = root / "repo"
    shutil.copytree(debs, repo)
    subprocess.run([ROOT / "scripts/repo", repo, debian.openpgp_key(tmp_path / "keys")], check=True, timeout=60)
    shutil.rmtree(root / "etc/apt/sources.list.d", ignore_errors=True)
    (root / "etc/apt/sources.list").write_text("deb [signed-by=/repo/fl-tiny.gpg] file:/repo ./\n")

    good = {path: path.read_bytes() for path in (repo / "Packages", repo / "Packages.gz")}
    changed = good[repo / "Packages"].replace(b"Version: 0.1.0", b"Version: 9.9.9")
    (repo / "Packages").write_bytes(changed)
    (repo / "Packages.gz").write_bytes(gzip.compress(changed))
    debian.inside(root, "apt-get", "update", code=100)
    for path, data in good.items():
        path.write_bytes(data)
    debian.inside(root, "apt-get", "update")
    debian.inside(root, "apt-get", "install", "-y", "-qq", "fl-tiny", "fl-tiny-gateway", patience=300)
    installed = debian.inside(root, "dpkg-query", "-W", "-f", "${Package}\n", "fl-tiny*").split()
    assert installed == ["fl-tiny", "fl-tiny-gateway", "fl-tiny-tflite"], "the runtime comes as a recommendation"
    shutil.rmtree(root)
