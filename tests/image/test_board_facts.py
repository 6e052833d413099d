# SPDX-License-Identifier: Apache-2.0
"""Board files against Debian's packages, where scripts/board-facts has fetched them; what it says of wrong ones."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.image.linters import ROOT, tomllib

BOARDS = sorted(path.stem for path in (ROOT / "image/boards").glob("*.toml"))
PI = "rpi-5"


@pytest.fixture(name="facts", scope="module")
def the_script() -> ModuleType:
    """scripts/board_facts.py, when it has its packages."""
    if not (ROOT / "build/facts/trixie-backports/debs").is_dir():
        pytest.skip("the packages are not there: scripts/board-facts fetches them (300 MB)")
    spec = importlib.util.spec_from_file_location("board_facts", ROOT / "scripts/board_facts.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def board(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / f"image/boards/{name}.toml").read_text())


@pytest.mark.parametrize("name", BOARDS)
def test_what_a_board_file_names_is_in_debians_packages(facts: ModuleType, name: str) -> None:
    assert facts.faults_of(board(name)) == []


def test_what_is_not_in_the_packages_is_named(facts: ModuleType) -> None:
    wrong = board(PI)
    wrong["kernel"] |= {
        "options": ["MISC_RP1", "TEGRA_BPMP"],
        "modules": ["drivers/misc/rp1/*", "drivers/misc/rp2/*"],
        "initrd": ["nvme", "nvmee"],
        "device_trees": ["broadcom/bcm2712-rpi-6.dtb"],
    }
    wrong["firmware"]["files"] = {"usr/lib/u-boot/rpi_5/u-boot.bin": "u-boot.bin"}
    assert facts.faults_of(wrong) == [
        "option TEGRA_BPMP",
        "module drivers/misc/rp2/*",
        "initrd nvmee",
        "device tree broadcom/bcm2712-rpi-6.dtb",
        "file usr/lib/u-boot/rpi_5/u-boot.bin",
    ]


def test_a_pi_5_needs_the_backports_kernel(facts: ModuleType) -> None:
    older = board(PI)
    older["kernel"]["suite"] = ""
    lacking = facts.faults_of(older)
    assert {"option MISC_RP1", "option COMMON_CLK_RP1", "option PINCTRL_RP1", "option MMC_SDHCI_BRCMSTB"} <= set(
        lacking
    )


def test_no_kernel_of_debian_is_enough_for_an_orin(facts: ModuleType) -> None:
    wanted = set(board("jetson-orin-nano")["kernel"]["options"])
    for suite in facts.SUITES:
        assert {"TEGRA_BPMP", "PCIE_TEGRA194_HOST"} <= wanted - facts.kernel_of(suite).config
