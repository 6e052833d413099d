# SPDX-License-Identifier: Apache-2.0
"""An image held against its board: table, boot files, what is in its slot, the kernel's options and device trees."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from fl_tiny.errors import DataError
from fl_tiny.image import disk, firmware, kernel, plan
from fl_tiny.image.boards import Base, Board
from fl_tiny.image.firmware import Looked
from fl_tiny.image.slot import Slot, slot_of

NEEDED = (  # paths in a slot, with wildcards
    "boot/vmlinuz", "boot/initrd.img", "boot/config-*", "usr/bin/fl-tiny", "usr/lib/fl-tiny/fl_tiny/__init__.py",
    "usr/lib/systemd/system/fl-tiny-device.service", "usr/lib/systemd/system/board-machine-id.service", "usr/bin/rauc",
    "etc/fl-tiny-release", "etc/machine-id", "usr/lib/clock-epoch",
)  # fmt: skip
EXT4_AT, EXT4_MAGIC, EXT4_LABEL = 1024, 56, 120  # Source: kernel.org, ext4 data structures, the super block
FAT_LABEL_AT = 71  # of FAT32's boot sector, 11 bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. missing: what is not as it must be; empty when all is."""

    check: str
    looked_at: int
    missing: tuple[str, ...]


def board_of(image: Path, boards: Iterable[Board]) -> Board:
    """The board that an image is for, by the signature of its disk. Raises: DataError."""
    found = disk.read_table(image).signature
    for board in boards:
        if plan.signature(board) == found:
            return board
    raise DataError(f"{image} has the disk signature {found}, which is no board's", hint="--board BOARD")


def verify(image: Path, board: Board, base: Base) -> list[Finding]:
    """All that was looked at. Raises: DataError when the file is no image at all."""
    steps = plan.plan(board, base, plan.Release("", ""))
    boot = next(step for step in steps if isinstance(step, plan.Boot))
    wanted = next(step for step in steps if isinstance(step, plan.Disk))
    found = [_finding("partitions", _partitions(image, wanted))]
    found.append(_finding("boot files", _boot_files(image, boot)))
    found.append(_finding("firmware", firmware.on_fat(board, lambda path: disk.read_fat(image, path))))
    found.append(_finding("filesystems", _filesystems(image)))
    slot = slot_of(image)
    if slot is None:
        return [*found, Finding("slot", 1, ("slot A holds no squashfs",))]
    found.append(_finding("slot", _slot(slot, board)))
    path = slot.find("boot/config-*")
    config = slot.text(path) if path else ""
    found.append(_finding("kernel options", kernel.options(config, plan.options(board, base))))
    found.append(_finding("modules", _modules(slot, config, board, base)))
    found.append(_finding("device trees", _trees(image, slot, boot, board)))
    return found


def _finding(check: str, looked: Looked) -> Finding:
    found = list(looked)
    return Finding(check, len(found), tuple(what for what, right in found if not right))


def _partitions(image: Path, wanted: plan.Disk) -> Looked:
    table = disk.read_table(image)
    yield f"disk signature {wanted.signature}, it is {table.signature}", table.signature == wanted.signature
    for name, start, size, kind in wanted.parts:
        part = disk.Part(start * plan.MIB, size * plan.MIB, kind)
        yield f"{name} at {start} MiB, {size} MiB, type {kind:#x}", table.parts[name] == part


def _boot_files(image: Path, boot: plan.Boot) -> Looked:
    there = {path.lower() for path in disk.list_fat(image)}
    names = ["EFI/BOOT/BOOTAA64.EFI", *(target for _, target in (*boot.templates, *boot.files, *boot.from_slot))]
    names += [f"fl-state/{which}/env" for which in ("0", "1", "tried")]
    for name in names:
        yield f"{name} on FAT", name.lower() in there
    grub = (disk.read_fat(image, "grub/grub.cfg") or b"").decode(errors="replace")
    for word, value in boot.words:
        if word in ("@SLOT_A@", "@SLOT_B@", "@CMDLINE@"):
            yield f"{value} in grub.cfg", value in grub


def _filesystems(image: Path) -> Looked:
    table = disk.read_table(image)
    with image.open("rb") as file:
        file.seek(table.parts["boot"].start + FAT_LABEL_AT)
        yield f"FAT called {plan.FAT_LABEL}", file.read(11).decode("latin-1").rstrip() == plan.FAT_LABEL
        file.seek(table.parts["data"].start + EXT4_AT)
        block = file.read(EXT4_LABEL + 16)
    right = block[EXT4_MAGIC : EXT4_MAGIC + 2] == b"\x53\xef"
    yield f"ext4 called {plan.DATA_LABEL}", right and block[EXT4_LABEL:].rstrip(b"\0").decode() == plan.DATA_LABEL


def _slot(slot: Slot, board: Board) -> Looked:
    for pattern in (*NEEDED, *(f"usr/share/doc/{package}/copyright*" for package in board.firmware.root)):
        yield f"{pattern} in the slot", bool(slot.find(pattern))
    yield (
        "boot/vmlinuz a Linux for arm64",
        firmware.is_kernel(slot.read("boot/vmlinuz") if slot.find("boot/vmlinuz") else b""),
    )
    shadow = slot.text("etc/shadow") if slot.find("etc/shadow") else ""
    yield "a root that has no password", re.search(r"^root:\*:", shadow, re.MULTILINE) is not None
    hashed = [line.split(":")[0] for line in shadow.split("\n") if "$" in line]
    yield f"no user with a password, but {', '.join(hashed)}", not hashed
    release = slot.text("etc/fl-tiny-release") if slot.find("etc/fl-tiny-release") else ""
    yield f"a release for {board.compatible}", f"COMPATIBLE={board.compatible}\n" in release
    yield "no host key of SSH", not slot.find("etc/ssh/ssh_host_*")


def _modules(slot: Slot, config: str, board: Board, base: Base) -> Looked:
    """Modules that were to be kept, and those that find the slot, be they files or built in."""
    listed = slot.find("usr/lib/modules/*/modules.builtin")
    fixed = set(re.findall(r"^CONFIG_(\w+)=y$", config, re.MULTILINE))
    paths = [path.split("/kernel/", 1)[1] for path in slot.sizes if "/kernel/" in path and ".ko" in path]
    paths += [line.removeprefix("kernel/") for line in slot.text(listed).split()] if listed else []
    names = {path.split("/")[-1].split(".ko")[0].replace("-", "_") for path in paths}
    for pattern in base.kernel.modules + board.kernel.modules:
        # What cannot be a module is in no list of built-in ones: IPV6 since Linux 7
        option = pattern.split("/")[-1].rstrip("*.").replace("-", "_").upper()
        yield f"module {pattern}", option in fixed or any(fnmatch(path, pattern) for path in paths)
    for name in base.kernel.initrd + board.kernel.initrd:
        yield f"module {name} for the initrd", name.replace("-", "_") in names


def _trees(image: Path, slot: Slot, boot: plan.Boot, board: Board) -> Looked:
    for tree in board.kernel.device_trees:
        path = slot.find(f"*/{tree}")
        yield f"{tree} in the slot", bool(path)
        for source, target in boot.from_slot:
            if path and source == tree:
                same = disk.read_fat(image, target) == slot.read(path)
                yield f"{target} on FAT as the kernel's package has it", same
