# SPDX-License-Identifier: Apache-2.0
"""Buildroot's external tree: read by Kconfig's rules and by make, its install commands run on this checkout.

Buildroot itself cannot be had here, so a menu and a makefile of ours stand in for its own (tests/image/layers).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.image.linters import LAYERS, NOT_ENABLED, ROOT, VERSION, below, board, helper, needed, run, tmpfiles, units

TREE = LAYERS / "buildroot"
PACKAGE = TREE / "package/fl-tiny"
# A board that can have fl-tiny
FIT = ("BR2_PACKAGE_PYTHON3=y", "BR2_PACKAGE_PYTHON_NUMPY_ARCH_SUPPORTS=y", "BR2_TOOLCHAIN_USES_GLIBC=y")
WANTED = "BR2_PACKAGE_FL_TINY=y"
HELP_WIDTH = 62  # after a tab and two spaces. Source: Buildroot's manual, "Writing rules", Config.in


def made(target: str, tree: Path = TREE, **variables: str) -> str:
    """What make prints, or does, of the package's makefile. Raises: ValueError when make fails."""
    if not shutil.which("make"):
        pytest.skip("make is not installed: scripts/test-layers does it")
    words = [f"{name}={value}" for name, value in {"BR2_EXTERNAL_FL_TINY_PATH": str(tree), **variables}.items()]
    done = run("make", "-s", "-f", Path(__file__).parent / "layers/buildroot.mk", *words, target)
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout


def configured(*words: str, tree: Path = TREE) -> dict[str, str]:
    """Each symbol's value. Raises: ValueError when Kconfig warns."""
    done = helper("kconfig.py", tree, *words)
    if done.returncode:
        raise ValueError(done.stderr)
    values: dict[str, str] = json.loads(done.stdout)
    return values


def test_the_tree_has_the_name_that_its_files_use() -> None:
    name = re.search(r"^name: ([A-Z0-9_]+)$", (TREE / "external.desc").read_text(), re.MULTILINE)[1]
    for file in ("external.mk", "Config.in", "package/fl-tiny/fl-tiny.mk"):
        assert set(re.findall(r"BR2_EXTERNAL_(\w+)_PATH", (TREE / file).read_text())) == {name}


def test_choosing_fl_tiny_brings_what_it_needs() -> None:
    values = configured(*FIT, WANTED)
    assert values["BR2_PACKAGE_FL_TINY"] == "y"
    for name in needed():
        assert values[f"BR2_PACKAGE_PYTHON_{name.upper()}"] == "y"
    for name in ("OPENSSL_FORCE_LIBOPENSSL", "PYTHON3_SQLITE", "PYTHON3_ZLIB"):
        assert values[f"BR2_PACKAGE_{name}"] == "y"


@pytest.mark.parametrize("lacking", [*FIT, "BR2_STATIC_LIBS=y"])
def test_fl_tiny_cannot_be_chosen_where_it_would_not_run(lacking: str) -> None:
    words = (lacking, *FIT) if lacking not in FIT else tuple(word for word in FIT if word != lacking)
    assert configured(*words, WANTED)["BR2_PACKAGE_FL_TINY"] == "n"


@pytest.mark.parametrize(
    ("old", "new"),
    [("select BR2_PACKAGE_OPENSSL\n", "select BR2_PACKAGE_OPENSSSL\n"), ("endif", ""), ("\tbool", "\tboool")],
    ids=["symbol", "endif", "type"],
)
def test_kconfig_refuses_a_broken_menu(tmp_path: Path, old: str, new: str) -> None:
    tree = shutil.copytree(TREE, tmp_path / "tree")
    path = tree / PACKAGE.relative_to(TREE) / "Config.in"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"BR2_PACKAGE_OPENSSSL|Config\.in"):
        configured(*FIT, WANTED, tree=tree)


def test_the_makefile_names_this_version_and_this_checkout() -> None:
    said = dict(line.split("=", 1) for line in made("variables").split())
    assert said["VERSION"] == VERSION and said["LICENSE"] == "Apache-2.0"
    assert Path(said["SITE"]).resolve() == ROOT and said["SITE_METHOD"] == "local"
    assert (ROOT / said["LICENSE_FILES"]).is_file()


def test_the_licence_has_its_sum() -> None:
    sum_, name = re.search(r"^sha256  ([0-9a-f]{64})  (\S+)$", (PACKAGE / "fl-tiny.hash").read_text(), re.M).groups()
    assert hashlib.sha256((ROOT / name).read_bytes()).hexdigest() == sum_


def test_a_buildroot_with_too_old_an_aiocoap_is_refused() -> None:
    least = re.search(r"^FL_TINY_AIOCOAP_MIN = (\S+)$", (PACKAGE / "fl-tiny.mk").read_text(), re.MULTILINE)[1]
    assert least == needed()["aiocoap"]
    for version in (least, "0.4.20"):
        made("check", PYTHON_AIOCOAP_VERSION=version)
    with pytest.raises(ValueError, match=r"needs python-aiocoap 0\.4\.17: this Buildroot has 0\.4\.14"):
        made("check", PYTHON_AIOCOAP_VERSION="0.4.14")


def test_the_user_is_the_one_of_the_services() -> None:
    name, _, group, _, password, home, shell, _, *_ = made("users").split()
    assert (name, group, password, shell) == ("fl-tiny", "fl-tiny", "*", "-")
    conf = (ROOT / "deploy/systemd/sysusers.d/fl-tiny.conf").read_text()
    assert re.search(rf"^u {name} .* {home}$", conf, re.MULTILINE)
    assert "/var/lib/fl-tiny/device d 750 fl-tiny fl-tiny" in made("permissions")


@pytest.mark.parametrize("gateway", ["y", ""])
def test_what_systemd_gets_is_every_unit_of_the_roles_chosen(tmp_path: Path, gateway: str) -> None:
    made("systemd", TARGET_DIR=str(tmp_path), BR2_PACKAGE_FL_TINY_GATEWAY=gateway)
    for folder, all_ in (("systemd/system", units()), ("tmpfiles.d", tmpfiles())):
        wanted = {k: v for k, v in all_.items() if gateway or not k.startswith("fl-tiny-gateway.")}
        assert below(tmp_path / "usr/lib" / folder) == wanted
    assert below(tmp_path / "etc") == board()
    (preset,) = below(tmp_path / "usr/lib/systemd/system-preset").values()
    assert set(re.findall(r"^disable (\S+)$", preset, re.MULTILINE)) == NOT_ENABLED


def test_busybox_init_gets_a_script_that_waits_for_an_enrolled_board(tmp_path: Path) -> None:
    made("sysv", TARGET_DIR=str(tmp_path))
    script = tmp_path / "etc/init.d/S80fl-tiny-device"
    done = run("/bin/sh", script, "start")
    assert done.returncode == 0 and "not enrolled" in done.stdout
    assert run("/bin/sh", script, "dance").returncode == 1


def test_files_have_the_form_that_buildroots_own_check_demands() -> None:
    """Rules of its utils/check-package that a change here could break; PyPI has no package of it."""
    makefile = (PACKAGE / "fl-tiny.mk").read_text().split("\n")
    assert makefile[:6] == ["#" * 80, "#", "# fl-tiny", "#", "#" * 80, ""]
    menu = (PACKAGE / "Config.in").read_text().split("\n")
    order, last, helped = ["bool", "default", "depends", "select", "help"], 0, False
    for line in menu:
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        if not line.startswith("\t") and word:
            last, helped = 0, False
        elif helped and word:
            assert re.fullmatch(rf"\t  .{{1,{HELP_WIDTH}}}", line), line
        elif word in order:
            assert order.index(word) >= last, f"order of attributes: {line}"
            last, helped = order.index(word), word == "help"
    for path in (*PACKAGE.iterdir(), TREE / "Config.in", TREE / "external.mk"):
        text = path.read_text()
        assert text.endswith("\n") and "\n\n\n" not in text and not re.search(r"[ \t]\n", text), path.name
