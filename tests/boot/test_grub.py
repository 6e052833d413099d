# SPDX-License-Identifier: Apache-2.0
"""A real GRUB judges the boot state's files as we do, marks what it tries on a real FAT, and never tries it twice."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fl_tiny.device import bootstate
from fl_tiny.device.bootfiles import PLACES, TRIED
from fl_tiny.device.bootstate import BLOCK, FIRST, SECTOR, State

TEMPLATE = Path(__file__).parents[2] / "image/templates/grub.cfg"
FIRMWARE = Path("/usr/share/AAVMF/AAVMF_CODE.fd")
TOOLS = ("qemu-system-aarch64", "grub-mkimage", "mformat", "mcopy", "mtype")
MODULES = "part_msdos fat normal loadenv test regexp echo halt configfile minicmd"
PART = 1 << 20  # where the boot partition begins
SECTORS = 129024  # of 512 B: 63 MiB
PATIENCE_S = 300.0

_absent = [t for t in TOOLS if shutil.which(t) is None] + [str(p) for p in (FIRMWARE,) if not p.exists()]
pytestmark = pytest.mark.skipif(bool(_absent), reason=f"no GRUB to boot here: {', '.join(_absent)} missing")

Case = tuple[bytes | None, bytes | None, bytes | None]


def cases() -> list[Case]:
    """States of the three files: whole, torn at each place that matters, damaged, missing; seeded noise."""
    old, new = bootstate.encode(State(FIRST + 7, "A")), bootstate.encode(State(FIRST + 8, "A", "B"))
    back = bootstate.encode(State(FIRST + 9, "B"))
    tried, fresh = bootstate.encode_tried(FIRST + 8), bootstate.encode_tried(FIRST + 3)
    zeros, ones = b"\0" * BLOCK, b"\xff" * BLOCK
    found: list[Case] = [
        (old, new, fresh),
        (new, old, fresh),
        (old, new, tried),
        (new, back, tried),
        (back, new, fresh),
    ]
    found += [(a, b, t) for a in (None, zeros, ones, b"", old) for b in (None, zeros, new) for t in (fresh, tried)]
    found += [
        (old, new, mark) for mark in (None, b"", zeros, ones, tried[:SECTOR], fresh[:SECTOR], bootstate.SIGNATURE)
    ]
    found += [(new[:at] + old[at:], old, fresh) for at in (10, 30, 35, 38, 42, 46, 50, 55, 60, 66, 70, 73, SECTOR)]
    found += [(old, new[:at], fresh) for at in (20, 60, 74, 75, 76, 80, SECTOR)]
    draw = random.Random(6)
    for _ in range(60):
        blocks = [bytearray(draw.choice((old, new, back, tried, fresh))) for _ in range(3)]
        for block in blocks:
            for _ in range(draw.choice((0, 0, 1, 2))):
                block[draw.randrange(20, 90)] = draw.choice(b"\n\\=#ABfl_019-\0\xff")
        found.append((bytes(blocks[0]), bytes(blocks[1]), bytes(blocks[2])))
    return found


def expected(case: Case) -> tuple[str, int | None]:
    """By our own rules: the slot that boots, and the generation marked before."""
    found = bootstate.newest(bootstate.Files(case[:2], case[2]))
    if found is None:
        return "A", None
    state, tried = found[1], bootstate.decode_tried(case[2])
    if state.trial is None or tried in (None, state.generation):
        return state.good, None
    return state.trial, state.generation


def run_grub(
    folder: Path, table: list[Case], starts: int, grub: Path, drive: str = ""
) -> tuple[dict[tuple[int, int], str], Path]:
    """Let GRUB choose ``starts`` times in each case; (case, start) -> slot, and the disk as left. grub: modules."""
    files = folder / "files"
    for number, case in enumerate(table):
        for name, content in zip((*PLACES, TRIED), case, strict=True):
            path = files / f"c{number}" / name
            path.parent.mkdir(parents=True)
            if content is not None:
                path.write_bytes(content)
    head = TEMPLATE.read_text().split("# ---- start;")[0]
    lines = [
        f'set fl_dir="($root)/c{case}/fl-state"\nfl_choose\necho "CASE {case} {start} $fl_slot"\n'
        for start in range(starts)
        for case in range(len(table))
    ]
    (files / "grub").mkdir()
    (files / "grub/grub.cfg").write_text("set pager=0\n" + head + "".join(lines) + "halt\n")
    (files / "EFI/BOOT").mkdir(parents=True)
    image = ["grub-mkimage", "-O", "arm64-efi", "-d", grub, "-p", "/grub", "-o", files / "EFI/BOOT/BOOTAA64.EFI"]
    subprocess.run([*image, *MODULES.split()], check=True, timeout=60)
    disk = folder / "disk.img"
    entry = struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x0C, b"\xff\xff\xff", PART // SECTOR, SECTORS)
    disk.write_bytes(bytes(446) + entry + bytes(48) + b"\x55\xaa")
    os.truncate(disk, PART + SECTORS * SECTOR)
    subprocess.run(["mformat", "-i", f"{disk}@@{PART}", "-F", "-T", str(SECTORS), "::"], check=True, timeout=60)
    subprocess.run(["mcopy", "-s", "-i", f"{disk}@@{PART}", *sorted(files.iterdir()), "::"], check=True, timeout=120)
    machine = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57", "-m", "256", "-nographic", "-nic", "none"]
    machine += ["-bios", FIRMWARE, "-drive", f"file={disk},format=raw,if=virtio{drive}"]
    said = subprocess.run(machine, capture_output=True, timeout=PATIENCE_S, check=True, stdin=subprocess.DEVNULL)
    found = {}
    for line in said.stdout.decode("latin-1").replace("\r", "").split("\n"):
        if "CASE " in line:
            case, start, slot = line.split("CASE ")[1].split()[:3]
            found[int(case), int(start)] = slot[0]
    return found, disk


def test_a_real_grub_and_our_rules_agree_on_every_state_of_the_files(tmp_path: Path, grub: Path) -> None:
    table = cases()
    found, disk = run_grub(tmp_path, table, 2, grub)
    assert len(found) == 2 * len(table)
    for number, case in enumerate(table):
        slot, marked = expected(case)
        assert found[number, 0] == slot, (number, case)
        read = ["mtype", "-i", f"{disk}@@{PART}", f"::c{number}/{TRIED}"]
        left = subprocess.run(read, capture_output=True, timeout=60, check=False).stdout
        if marked is None:
            assert left == (case[2] or b""), "GRUB writes nothing but the mark of a try"
            assert found[number, 1] == slot
        else:
            assert bootstate.decode_tried(left) == marked
            good = bootstate.newest(bootstate.Files(case[:2], case[2]))
            assert good is not None
            assert found[number, 1] == good[1].good, "the second start of a try is the good slot"


def test_a_grub_that_cannot_write_its_mark_boots_the_good_slot(tmp_path: Path, grub: Path) -> None:
    """Without the mark a try could come again and again."""
    tried = bootstate.encode_tried(FIRST)
    table: list[Case] = [(bootstate.encode(State(FIRST + 1, good, trial)), None, tried) for good, trial in ("AB", "BA")]
    found, _ = run_grub(tmp_path, table, 2, grub, ",readonly=on")
    assert found == {(0, 0): "A", (0, 1): "A", (1, 0): "B", (1, 1): "B"}
