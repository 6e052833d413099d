# SPDX-License-Identifier: Apache-2.0
"""Board files: those that we ship are right, and a wrong one yields every fault with its place and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_tiny.errors import ConfigError
from fl_tiny.image import boards

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "image"
WRONG = """
tittle = "A board"
suite = "sid"
compatible = "fl tiny"
console = ["serial"]
claim = "boots"

[boot]
chain = "bios"

[disk]
size_mib = "512"
boot_mib = 65
slot_mib = 160

[kernel]
package = "linux-image-arm64"
options = ["CONFIG-VIRTIO"]
modules = ["../fs"]
"""


def recipes(tmp_path: Path, text: str) -> Path:
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards/mine.toml").write_text(text)
    return tmp_path


def fault(where: Path, name: str = "mine") -> str:
    with pytest.raises(ConfigError) as caught:
        boards.load_board(where, name)
    return str(caught.value)


def test_a_wrong_board_yields_every_fault_with_file_key_and_rule(tmp_path: Path) -> None:
    said = fault(recipes(tmp_path, WRONG))
    for part in (
        f"{tmp_path}/boards/mine.toml: ",
        "unknown key tittle, did you mean title?",
        "title is missing",
        "suite: 'sid' is not one of bookworm, trixie",
        "compatible: 'fl tiny' is not letters, digits and dashes",
        "console: 'serial' is not a console such as ttyS1,115200",
        "boot.chain: 'bios' is not one of uefi, u-boot, firmware",
        "disk.size_mib: '512' is not a whole number",
        "disk.boot_mib: 65 is not a multiple of 4 from 16 to 16384",
        "kernel.options: 'CONFIG-VIRTIO' is not the name of a kernel option",
        "kernel.modules: '../fs' is not a path inside",
        "limits is missing",
        "docs/porting.md",
    ):
        assert part in said, part


def test_keys_that_do_not_fit_each_other_are_all_named(tmp_path: Path) -> None:
    good = (RECIPES / "boards/qemu-arm64.toml").read_text()
    odd = (
        good.replace("size_mib = 512", "size_mib = 256")
        .replace('chain = "uefi"', 'chain = "u-boot"')
        .replace('package = "linux-image-arm64"', 'package = "linux-image-arm64"\nbrought = true\nsuite = "sid"')
    )
    said = fault(recipes(tmp_path, odd))
    for part in ("disk.size_mib: 256 is less", "a package or brought", "kernel.suite: sid", "firmware.files"):
        assert part in said, part


@pytest.mark.parametrize("text", ["[boot", "boot = 3", "", "\xff\xfe"])
def test_a_file_that_is_no_board_is_a_fault_of_the_operator(tmp_path: Path, text: str) -> None:
    assert "mine.toml" in fault(recipes(tmp_path, text))


def test_a_board_that_is_not_there_is_answered_with_the_nearest() -> None:
    assert "did you mean qemu-arm64?" in fault(RECIPES, "qemu-arm46")


def test_recipes_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--recipes"):
        boards.find_recipes(tmp_path)


@pytest.mark.parametrize("name", boards.names(RECIPES))
def test_each_board_of_ours_is_right_and_its_claim_has_its_log(name: str) -> None:
    board = boards.load_board(RECIPES, name)
    assert not board.log or (ROOT / board.log).is_file(), board.log
    assert boards.load_base(RECIPES).packages
