# SPDX-License-Identifier: Apache-2.0
"""`fleet install` over real sshds on loopback: enrolled by one command, again without a change, faults told apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.fleet import COMMAND, Fleet, cli

from . import debian
from .boards import Sshd, own_state

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.skipif(SSHD is None or not shutil.which("ssh"), reason="openssh-server is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="boards of their own state need root"),
]
BOARDS = 5


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    found = Sshd(tmp_path / "ssh")
    yield found
    found.end()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path)
    yield found
    found.end()


def command_path(folder: Path) -> str:
    """A search path that has `fl-tiny`, this checkout's."""
    folder.mkdir()
    script = folder / "fl-tiny"
    root = Path(__file__).parents[2]
    script.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m fl_tiny "$@"\n')
    script.chmod(0o755)
    return f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"


def boards(sshd: Sshd, tmp_path: Path, count: int) -> dict[str, Path]:
    """Boards that have the command and an empty state directory each: host -> directory."""
    Path("/var/lib/fl-tiny").mkdir(exist_ok=True)
    path, made = command_path(tmp_path / "bin"), {}
    for number in range(count):
        state = tmp_path / f"board{number}"
        state.mkdir()
        made[sshd.add(own_state(state, path)).host] = state
    return made


def install(*args: object, code: int = 0) -> list[dict[str, object]]:
    words = [*COMMAND, "fleet", "install", *map(str, args), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_five_boards_are_enrolled_by_one_command_and_train_a_round(sshd: Sshd, fleet: Fleet, tmp_path: Path) -> None:
    gateway = fleet.gateway("--rounds", 1, "--clients", BOARDS, "--quorum", 1, "--interval", 0)
    made = boards(sshd, tmp_path, BOARDS)
    common = (*made, "--gateway-dir", fleet.gw, "--gateway", f"127.0.0.1:{fleet.port}", *sshd.options)
    plan = install(*common, "--dry-run")
    assert all("enrol" in row["did"] and row["id"] == "" for row in plan)  # type: ignore[operator]
    assert cli("gateway", "devices", fleet.gw) == []
    rows = install(*common)
    assert all("enrol" in row["did"] and row["fault"] is None for row in rows), rows  # type: ignore[operator]
    assert {row["id"] for row in rows} == {device["id"] for device in cli("gateway", "devices", fleet.gw)}
    again = install(*common)
    assert [row["id"] for row in again] == [row["id"] for row in rows]
    assert not any("enrol" in row["did"] for row in again)  # type: ignore[operator]
    for number, state in enumerate(made.values()):
        cli("samples", "add", state / "device", "--data", fleet.data(f"d{number}", 40, number))
    runs = [fleet.run(state / "device", "--rounds", 1) for state in made.values()]
    assert gateway.wait() == 0
    assert [run.wait() for run in runs] == [0] * BOARDS
    assert cli("gateway", "rounds", fleet.gw)[0]["received"] == BOARDS


def test_a_board_that_is_not_there_costs_the_others_nothing(sshd: Sshd, fleet: Fleet, tmp_path: Path) -> None:
    fleet.gateway()
    (host,) = boards(sshd, tmp_path, 1)
    hosts = tmp_path / "hosts.txt"
    hosts.write_text(f"# two\n{host}\nssh://root@127.0.0.1:1  # nobody\n")
    cli("gateway", "pair", fleet.gw, "--count", 2, "--out", tmp_path / "cards")
    rows = install(
        "-i", hosts, "--codes", tmp_path / "cards", "--gateway", f"127.0.0.1:{fleet.port}", *sshd.options, code=69
    )
    assert [bool(row["fault"]) for row in rows] == [False, True]
    assert len(list((tmp_path / "cards").glob("*/fl-tiny.toml"))) == 1, "a code that nobody was given is still there"
    assert np.char.str_len(str(rows[0]["id"])) == 32


@pytest.fixture(scope="module")
def ansible() -> Path:
    """ansible-playbook in a venv of its own below build/."""
    root = Path(__file__).parents[2]
    folder = root / "build" / "ansible"
    playbook = folder / "bin" / "ansible-playbook"
    if not playbook.exists():
        for words in (
            [sys.executable, "-m", "venv", folder],
            [folder / "bin/pip", "install", "-q", "ansible-core>=2.14"],
        ):
            done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode != 0:
                pytest.skip(f"ansible-core cannot be installed here: {done.stderr[-200:]}")
    return playbook


def test_the_ansible_role_enrols_a_board_once(sshd: Sshd, fleet: Fleet, tmp_path: Path, ansible: Path) -> None:
    fleet.gateway()
    (host,) = boards(sshd, tmp_path, 1)
    port, key = host.rsplit(":", 1)[1], next(o for o in sshd.options if o.startswith("IdentityFile")).partition("=")[2]
    said = "ansible_ssh_common_args='-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes'"
    board = (
        f"board ansible_host=127.0.0.1 ansible_port={port} ansible_user=root ansible_ssh_private_key_file={key} {said}"
    )
    python = f"ansible_python_interpreter={sys.executable}"
    lines = (f"localhost ansible_connection=local {python}", "[boards]", f"{board} {python}")
    (tmp_path / "inventory").write_text("\n".join(lines) + "\n")
    (tmp_path / "vars.json").write_text(
        json.dumps(
            {
                "fl_tiny_gateway": f"127.0.0.1:{fleet.port}",
                "fl_tiny_gateway_dir": str(fleet.gw),
                "fl_tiny_gateway_become": False,
            }
        )
    )
    words = [ansible, "-i", tmp_path / "inventory", "-e", f"@{tmp_path / 'vars.json'}"]
    playbook = Path(__file__).parents[2] / "deploy/ansible/site.yml"
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
    for changed in ("changed=2", "changed=0"):
        done = subprocess.run([*words, playbook], capture_output=True, text=True, timeout=200, env=env, check=False)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-500:]
        assert changed in done.stdout
    assert [device["name"] for device in cli("gateway", "devices", fleet.gw)] == ["board"]
    assert "FL1:" not in done.stdout


@pytest.mark.full
@pytest.mark.skipif(bool(debian.missing()), reason=debian.missing())
def test_five_bare_machines_come_to_a_published_round(sshd: Sshd, fleet: Fleet, tmp_path: Path) -> None:
    """Machines of their own systemd without fl-tiny: one command installs, enrols and starts it on all of them."""
    debs = debian.build_debs()
    gateway = fleet.gateway("--rounds", 1, "--clients", BOARDS, "--quorum", 1, "--interval", 0)
    machines: list[debian.Machine] = []
    try:
        for number in range(BOARDS):
            machines.append(debian.Machine(debian.make_root(tmp_path / f"root{number}", "bookworm")))
        enter = (
            "exec nsenter -t {} -m -p -C -u -i --root --wd env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root sh -c"
        )
        hosts = [sshd.add(enter.format(machine.init)).host for machine in machines]
        common = ("--gateway-dir", fleet.gw, "--gateway", f"127.0.0.1:{fleet.port}", "--packages", debs, *sshd.options)
        rows = install(*hosts, *common)
        assert [(row["did"], row["fault"]) for row in rows] == [(["install", "enrol", "start"], None)] * BOARDS
        for number, machine in enumerate(machines):
            shutil.copy(fleet.data(f"d{number}", 40, number), machine.root / "samples.npz")
            (machine.root / "samples.npz").chmod(0o644)
            machine.run("fl-tiny", "samples", "add", "/var/lib/fl-tiny/device", "--data", "/samples.npz")
        assert gateway.wait(120) == 0
        assert cli("gateway", "rounds", fleet.gw)[0]["received"] == BOARDS
        again = install(*hosts, *common)
        assert [(row["did"], row["fault"]) for row in again] == [(["start"], None)] * BOARDS
    finally:
        for machine in machines:
            machine.end()
