# SPDX-License-Identifier: Apache-2.0
"""No claim of a board stands without a record and a log that show it, and docs/boards.md says what they say."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from fl_tiny.errors import DataError
from fl_tiny.image import boards, evidence
from fl_tiny.image.evidence import Record

ROOT = Path(__file__).parents[2]
RECIPES, KEPT = ROOT / "image", ROOT / "docs/evidence"
NAMES = boards.names(RECIPES)
BOOTED = "[  OK  ] Started fl-tiny-device.se…rated learning device (fl-tiny).\n"
TRAINED = "INFO gateway: round published number=1 updates=1 seconds=7.32\n"
VERIFIED = Record("a", "2026-11-24", "1", "6.1", "00", 512, {"slot": 12}, (), {"Python": 100}, 1.0)
FIGURES = {"boot_to_round_s": 200.0}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("boards_page", ROOT / "scripts/boards_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_boards_is_what_the_script_writes() -> None:
    assert (ROOT / "docs/boards.md").read_text() == generator().page(RECIPES, KEPT), "scripts/boards writes it"


@pytest.mark.parametrize("name", NAMES)
def test_no_board_claims_more_than_its_record_shows(name: str) -> None:
    board = boards.load_board(RECIPES, name)
    if board.claim == "drafted":
        return
    assert board.log == f"docs/evidence/{name}.json"
    kept = evidence.read(ROOT / board.log)
    assert kept.board == name
    assert boards.CLAIMS.index(board.claim) <= boards.CLAIMS.index(evidence.shown(kept, KEPT))


def test_every_record_is_of_a_board_and_every_log_of_a_record() -> None:
    assert {path.stem for path in KEPT.glob("*.json")} <= set(NAMES)
    for path in KEPT.glob("*.log"):
        assert evidence.read(path.with_suffix(".json")).log == path.name


@pytest.mark.parametrize(
    ("kept", "log", "claim"),
    [
        (replace(VERIFIED, checks={}), "", "drafted"),
        (replace(VERIFIED, missing=("start4.elf on FAT",)), BOOTED + TRAINED, "drafted"),
        (VERIFIED, BOOTED, "builds"),  # the record does not name the log
        (replace(VERIFIED, log="a.log"), "[  OK  ] Started ssh.service.\n", "builds"),
        (replace(VERIFIED, log="a.log"), BOOTED, "boots"),
        (replace(VERIFIED, log="a.log", figures=FIGURES), BOOTED, "boots"),
        (replace(VERIFIED, log="a.log", figures=FIGURES), BOOTED + TRAINED.replace("updates=1", "updates=0"), "boots"),
        (replace(VERIFIED, log="a.log"), BOOTED + TRAINED, "boots"),
        (replace(VERIFIED, log="a.log", figures=FIGURES), TRAINED, "builds"),
        (replace(VERIFIED, log="a.log", figures=FIGURES), BOOTED + TRAINED, "trains"),
        (replace(VERIFIED, log="b.log", figures=FIGURES), BOOTED + TRAINED, "builds"),
    ],
)
def test_a_record_shows_what_its_checks_and_its_log_show_and_no_more(
    tmp_path: Path, kept: Record, log: str, claim: str
) -> None:
    (tmp_path / "a.log").write_text(log)
    evidence.write(kept, tmp_path / "a.json")
    assert evidence.shown(evidence.read(tmp_path / "a.json"), tmp_path) == claim


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"board": "a"}', '{"missing": []}'])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="no record"):
        evidence.read(tmp_path / "a.json")


def test_every_file_of_a_slot_is_in_one_component() -> None:
    sizes = {
        "boot/vmlinuz": 1, "usr/lib/modules/6.1/kernel/a.ko": 2, "usr/lib/linux-image-6.1/a/b.dtb": 4,
        "usr/lib/fl-tiny/fl_tiny/a.py": 8, "usr/lib/fl-tiny/py3.11/a.so": 16,
        "usr/lib/python3/dist-packages/numpy/a.so": 32,
        "usr/lib/aarch64-linux-gnu/blas/libblas.so.3": 64, "usr/lib/python3.11/os.py": 128, "usr/bin/systemctl": 256,
        "usr/sbin/sshd": 512,
    }  # fmt: skip
    assert evidence.components(sizes) == {
        "kernel and initrd": 1, "kernel modules, device trees": 6, "numpy, with BLAS": 96, "TFLite's runtime": 16,
        "fl-tiny, with aiocoap": 8, "Python": 128, "systemd": 256, "the rest of Debian": 512,
    }  # fmt: skip
