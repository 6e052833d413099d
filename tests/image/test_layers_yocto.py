# SPDX-License-Identifier: Apache-2.0
"""meta-fl-tiny: what BitBake, oelint-adv and kas make of it, and whether it says what the project says elsewhere.

OE-Core cannot be had here, so classes of ours stand in for its own (tests/image/layers): nothing is built.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.image.linters import (
    LAYERS,
    NOT_ENABLED,
    ROOT,
    VERSION,
    below,
    board,
    helper,
    linters,
    needed,
    run,
    tmpfiles,
    units,
)

LAYER = LAYERS / "meta-fl-tiny"
RECIPES = sorted(LAYER.rglob("*.bb"))
MAIN = LAYER / f"recipes-fl/fl-tiny/fl-tiny_{VERSION}.bb"
SERIES = re.search(r'LAYERSERIES_COMPAT_fl-tiny = "([a-z ]+)"', (LAYER / "conf/layer.conf").read_text())[1].split()
# Modules of Python that OE-Core packs apart from python3-core, by their package's name.
# Source: python3-manifest.json of OE-Core, the same for these in scarthgap and since
APART = {
    "asyncio": "asyncio",
    "base64": "netclient",
    "contextvars": "numbers",
    "ctypes": "ctypes",
    "dataclasses": "profile",
    "difflib": "difflib",
    "fcntl": "fcntl",
    "glob": "shell",
    "gzip": "compression",
    "hashlib": "crypt",
    "hmac": "netclient",
    "html": "html",
    "http": "netclient",
    "ipaddress": "io",
    "json": "json",
    "logging": "logging",
    "mmap": "mmap",
    "random": "math",
    "resource": "resource",
    "secrets": "netclient",
    "shlex": "shell",
    "socket": "io",
    "sqlite3": "sqlite3",
    "statistics": "statistics",
    "string": "stringold",
    "tarfile": "compression",
    "tempfile": "io",
    "tomllib": "tomllib",
    "urllib": "netclient",
    "uuid": "netclient",
    "wave": "audio",
    "zipfile": "compression",
}
CORE = {
    *(
        "__future__",
        "argparse",
        "array",
        "ast",
        "binascii",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "csv",
        "enum",
    ),
    *("errno", "fnmatch", "functools", "heapq", "importlib", "inspect", "io", "itertools", "math", "operator", "os"),
    *("pathlib", "platform", "re", "select", "selectors", "shutil", "signal", "stat", "struct", "subprocess", "sys"),
    *("textwrap", "threading", "time", "tokenize", "traceback", "types", "typing", "unicodedata", "warnings"),
    *("weakref", "zlib"),
}


def parsed(recipe: Path, layer: Path = LAYER, *more: Path) -> dict[str, str]:
    """What BitBake's parser says of a recipe."""
    done = helper("bitbake.py", layer, recipe, *more)
    if done.returncode:
        raise ValueError(done.stderr)
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


def lint(layer: Path, series: str) -> list[str]:
    """What oelint-adv finds."""
    files = [layer / "conf/layer.conf", *sorted(layer.rglob("*.bb"))]
    words = ("-m", "oelint_adv", "--release", series, "--jobs", "1", "--relpaths")
    done = run(linters(), *words, *(path.relative_to(layer) for path in files), cwd=layer, HOME=str(ROOT / "build"))
    return done.stderr.splitlines()


@pytest.fixture(name="copy")
def copy_of_the_layer(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LAYER, tmp_path / LAYER.name))


@pytest.mark.parametrize("series", SERIES)
def test_the_linter_of_recipes_finds_nothing(series: str) -> None:
    assert lint(LAYER, series) == []


def test_the_linter_of_recipes_refuses_a_bad_one(copy: Path) -> None:
    recipe = copy / MAIN.relative_to(LAYER)
    recipe.write_text(re.sub("LICENSE = .*\n", "", recipe.read_text()).replace("RDEPENDS:${PN} +", "RDEPENDS_${PN} +"))
    found = "\n".join(lint(copy, SERIES[0]))
    assert "oelint.var.mandatoryvar.LICENSE" in found and "fl-tiny_" in found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_bitbake_reads_each_recipe(recipe: Path) -> None:
    assert parsed(recipe)["PN"] == recipe.stem.split("_")[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [("\n}\n", "\n"), ("SRCREV = ", "SRCREV "), ("inherit python", "inherit no_such_class python")],
    ids=["function", "assignment", "class"],
)
def test_bitbake_refuses_a_broken_recipe(copy: Path, old: str, new: str) -> None:
    recipe = copy / MAIN.relative_to(LAYER)
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"ParseError|no_such_class"):
        parsed(recipe, copy)


def test_the_recipe_needs_what_the_project_needs() -> None:
    said = parsed(MAIN)
    depends = dict(re.findall(r"([a-z0-9-]+)(?: \(>= ([0-9.]+)\))?", said["RDEPENDS:fl-tiny"]))
    for name, least in needed().items():
        assert depends[f"python3-{name}"] == least
    versions = [path.stem.split("_")[1] for path in RECIPES if path.stem.startswith("python3-aiocoap")]
    assert versions == [needed()["aiocoap"]]
    assert said["PV"] == VERSION


def test_the_recipe_needs_each_part_of_python_that_the_code_imports() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("older Pythons do not know all names of modules")
    imported = set()
    for path in (ROOT / "fl_tiny").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    standard = imported & sys.stdlib_module_names
    assert standard <= CORE | set(APART), f"which package of OE-Core has {standard - CORE - set(APART)}?"
    depends = parsed(MAIN)["RDEPENDS:fl-tiny"].split()
    assert {f"python3-{APART[name]}" for name in standard & set(APART)} <= set(depends)


def installed(into: Path) -> dict[str, str]:
    """Run the recipe's do_install on this checkout; what the recipe says, its paths those of the run."""
    said = parsed(MAIN)
    script = said["do_install"].replace("@D@", str(into)).replace(said["S"], str(ROOT))
    done = run("/bin/sh", "-euc", script)
    assert done.returncode == 0, done.stderr
    return said


def test_what_the_recipe_installs_is_every_unit_and_what_belongs_to_it(tmp_path: Path) -> None:
    said = installed(tmp_path)
    assert below(tmp_path / "usr/lib/systemd/system") == units()
    assert below(tmp_path / "usr/lib/tmpfiles.d") == tmpfiles()
    assert (
        "ExecStart=/usr/sbin/wpa_supplicant "
        in below(tmp_path / "etc")["systemd/system/wpa_supplicant@.service.d/fl-tiny.conf"]
    )
    assert {
        name: text.replace("/usr/sbin/wpa", "/sbin/wpa") for name, text in below(tmp_path / "etc").items()
    } == board()
    packed = [pattern for package in said["PACKAGES"].split() for pattern in said[f"FILES:{package}"].split()]
    for path in tmp_path.rglob("*"):
        inside = f"/{path.relative_to(tmp_path)}"
        bin_or_above = path.is_dir() or inside.startswith("/usr/bin")
        assert bin_or_above or any(inside.startswith(pattern) for pattern in packed), inside
    for pattern in said["FILES:fl-tiny-gateway"].split():
        assert (tmp_path / pattern.lstrip("/")).is_file(), "a gateway's file is named, not a folder of both"


def test_the_provisioning_file_is_that_of_all_images(tmp_path: Path) -> None:
    said = installed(tmp_path)
    wanted = (ROOT / "image/templates/fl-tiny.toml").read_bytes()
    assert (tmp_path / said["FILES:fl-tiny-provisioning"].strip().lstrip("/")).read_bytes() == wanted
    script = said["do_deploy"].replace("@DEPLOYDIR@", str(tmp_path)).replace(said["S"], str(ROOT))
    assert run("/bin/sh", "-euc", script).returncode == 0
    assert (tmp_path / "fl-tiny.toml").read_bytes() == wanted


def test_every_unit_that_a_boot_should_start_is_enabled_by_the_recipe() -> None:
    said = parsed(MAIN)
    enabled = {
        name for package in ("fl-tiny", "fl-tiny-gateway") for name in said[f"SYSTEMD_SERVICE:{package}"].split()
    }
    wanted = {name for name, text in units().items() if "\n[Install]\n" in text}
    assert enabled == wanted - NOT_ENABLED, (
        "name it in SYSTEMD_SERVICE of fl-tiny_*.bb, or in NOT_ENABLED of linters.py"
    )


def test_the_user_is_the_one_of_the_services() -> None:
    words = parsed(MAIN)["USERADD_PARAM:fl-tiny"].split()
    name, home = re.match(
        r'u (\S+) - "[^"]*" (\S+)', (ROOT / "deploy/systemd/sysusers.d/fl-tiny.conf").read_text().split("\n")[1]
    ).groups()
    assert words[-1] == name and words[words.index("--home-dir") + 1] == home
    assert "--system" in words and "--user-group" in words


def test_licence_sums_are_those_of_the_files() -> None:
    said = parsed(MAIN)["LIC_FILES_CHKSUM"]
    found = hashlib.md5((ROOT / "LICENSE").read_bytes(), usedforsecurity=False).hexdigest()
    assert said == f"file://LICENSE;md5={found}"


def test_bitbake_fetches_this_checkout(tmp_path: Path) -> None:
    said = parsed(MAIN, LAYER, tmp_path)
    tree = tmp_path / Path(said["S"]).name
    head = run("git", "ls-tree", "-r", "--name-only", "HEAD", cwd=ROOT).stdout.split("\n")
    for name in ("pyproject.toml", "LICENSE", "fl_tiny/__init__.py", "deploy/systemd/fl-tiny-device.service"):
        assert name in head and (tree / name).is_file()


def test_the_image_takes_the_device_and_what_provisioning_says(tmp_path: Path) -> None:
    image = parsed(LAYER / "recipes-fl/images/fl-tiny-image.bb")
    group = parsed(LAYER / "recipes-fl/packagegroups/packagegroup-fl-tiny.bb")
    assert image["IMAGE_INSTALL"].split() == ["packagegroup-fl-tiny"] and image["IMAGE_BOOT_FILES"].split() == [
        "fl-tiny.toml"
    ]
    assert {"fl-tiny", "fl-tiny-board"} <= set(group["RDEPENDS:packagegroup-fl-tiny"].split())
    sshd = tmp_path / "etc/ssh/sshd_config"
    sshd.parent.mkdir(parents=True)
    sshd.write_text("PermitRootLogin prohibit-password\nAuthorizedKeysFile\t.ssh/authorized_keys\n")
    assert image["ROOTFS_POSTPROCESS_COMMAND"].strip(" ;") == "fl_tiny_ssh"
    assert run("/bin/sh", "-euc", image["fl_tiny_ssh"].replace("@ROOTFS@", str(tmp_path))).returncode == 0
    assert re.findall(r"AuthorizedKeysFile\s.*", sshd.read_text()) == [
        "AuthorizedKeysFile /run/fl-tiny/ssh/authorized_keys"
    ]
    assert not {"empty-root-password", "allow-empty-password", "debug-tweaks"} & set(image["IMAGE_FEATURES"].split())


def kas(path: Path) -> dict[str, Any]:
    """What kas makes of a configuration."""
    done = helper("kas_config.py", path, KAS_WORK_DIR=str(ROOT / "build"))
    if done.returncode:
        raise ValueError(done.stderr)
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["missing"] == []
    return said["config"]


@pytest.mark.parametrize(
    ("board", "machine", "layer"),
    [
        ("raspberrypi", "raspberrypi4-64", "meta-raspberrypi"),
        ("jetson-orin-nano", "jetson-orin-nano-devkit", "meta-tegra"),
    ],
)
def test_kas_reads_each_board_and_finds_our_layer(board: str, machine: str, layer: str) -> None:
    config = kas(LAYER / f"kas/{board}.yml")
    assert config["machine"] == machine and config["target"] == "fl-tiny-image"
    assert config["defaults"]["repos"]["branch"] in SERIES
    assert {layer, "openembedded-core", "meta-openembedded"} <= set(config["repos"])
    (ours,) = config["repos"]["fl-tiny"]["layers"]
    assert (ROOT / ours / "conf/layer.conf").is_file()
    assert 'INIT_MANAGER = "systemd"' in config["local_conf_header"]["fl-tiny"]


def test_kas_refuses_a_misspelt_key(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((LAYER / "kas/fl-tiny.yml").read_text().replace("distro:", "distribution:"))
    with pytest.raises(ValueError, match="distribution"):
        kas(wrong)
