# SPDX-License-Identifier: Apache-2.0
"""Kernels held against their boards before anything is built: packages made here by dpkg-deb, faults by name."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from e2e.fleet import cli

from fl_tiny.errors import DataError
from fl_tiny.image import boards, kernel, plan

RECIPES = Path(__file__).parents[2] / "image"
ORIN = boards.load_board(RECIPES, "jetson-orin-nano")
WANTED = plan.options(ORIN, boards.load_base(RECIPES))
TREE = "usr/lib/linux-image-6.8.12/nvidia/tegra234-p3768-0000+p3767-0005.dtb"
CONTROL = (
    "Package: linux-image-6.8.12\nVersion: 1\nArchitecture: arm64\nMaintainer: a test <a@b>\nDescription: kernel\n"
)
pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


def config(without: str = "") -> str:
    lines = [f"CONFIG_{name}={'ym'[number % 2]}" for number, name in enumerate(WANTED) if name != without]
    return "\n".join([*lines, f"# CONFIG_{without or 'NOTHING'} is not set", ""])


def deb(folder: Path, files: dict[str, str]) -> Path:
    """A package of these files."""
    for name, text in {"DEBIAN/control": CONTROL, **files}.items():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    made = folder / "linux-image.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", folder / "tree", made], check=True, capture_output=True
    )
    return made


def step(given: Path) -> plan.Slot:
    steps = plan.plan(ORIN, boards.load_base(RECIPES), plan.Release("1", "1", kernel=str(given)))
    return next(step for step in steps if isinstance(step, plan.Slot))


def refused(folder: Path, given: Path, code: int = 65) -> str:
    words = (
        "image",
        "build",
        "jetson-orin-nano",
        "--kernel",
        given,
        "--out",
        folder / "out",
        "--work",
        folder / "work",
    )
    said = str(cli(*words, code=code))
    assert not (folder / "out").exists() and not (folder / "work").exists(), "nothing is begun"
    return said


@pytest.mark.parametrize("at", ["boot/config-6.8.12", "usr/lib/modules/7.3/config", "lib/modules/6.8.12/config"])
def test_a_kernel_that_has_all_is_taken(tmp_path: Path, at: str) -> None:
    given = deb(tmp_path, {at: config(), TREE: "tree"})
    kernel.demand(kernel.of_package(given), step(given))


@pytest.mark.parametrize("missing", ["TEGRA_BPMP", "SQUASHFS"], ids=["of the board", "of all boards"])
def test_a_kernel_without_an_option_is_refused_by_its_name_before_anything_is_built(
    tmp_path: Path, missing: str
) -> None:
    said = refused(tmp_path, deb(tmp_path, {"boot/config-6.8.12": config(missing), TREE: "tree"}))
    assert re.findall(r"CONFIG_\w+", said) == [f"CONFIG_{missing}"] and "linux-image.deb" in said


def test_all_that_a_kernel_lacks_is_named_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, deb(tmp_path, {"boot/config-6.8.12": "CONFIG_EXT4_FS=m\n"}))
    assert set(re.findall(r"CONFIG_(\w+)", said)) == set(WANTED) - {"EXT4_FS"}
    assert "nvidia/tegra234-p3768-0000+p3767-0005.dtb" in said


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    assert "no kernel's config" in refused(tmp_path, deb(tmp_path, {"usr/bin/tool": "tool"}))
    (tmp_path / "text.deb").write_text("text")
    assert "no Debian package" in refused(tmp_path, tmp_path / "text.deb")
    assert "--kernel DEB" in refused(tmp_path, tmp_path / "absent.deb", code=78)


@pytest.mark.parametrize("more", [("build",), ("bundle", "--keys", "keys")], ids=["build", "bundle"])
def test_a_board_whose_kernel_is_brought_says_what_it_needs(more: tuple[str, ...], tmp_path: Path) -> None:
    name, *options = more
    options += ["--out", str(tmp_path / "out")]
    said = cli("image", name, "jetson-orin-nano", *options, code=78)
    assert set(re.findall(r"CONFIG_(\w+)", said)) == set(WANTED) and "--kernel DEB" in said
    said = cli("image", name, "rpi-4", "--kernel", tmp_path, *options, code=78)
    assert "has its kernel from Debian" in said


def test_a_root_of_debian_is_read_without_unpacking_it(tmp_path: Path) -> None:
    tree = tmp_path / "root"
    for name, text in {"boot/config-6.1": "CONFIG_EXT4_FS=m\n", "usr/lib/linux-image-6.1/a/b.dtb": "tree"}.items():
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(text)
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.add(tree, ".")
    found = kernel.of_root(tmp_path / "root.tar")
    assert list(kernel.options(found.config, ["EXT4_FS", "SQUASHFS"])) == [
        ("CONFIG_EXT4_FS", True),
        ("CONFIG_SQUASHFS", False),
    ]
    assert found.trees == ("./usr/lib/linux-image-6.1/a/b.dtb",)
    with tarfile.open(tmp_path / "root.tar", "w"):
        pass
    with pytest.raises(DataError, match="no kernel's config"):
        kernel.of_root(tmp_path / "root.tar")
