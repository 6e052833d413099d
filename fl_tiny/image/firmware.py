# SPDX-License-Identifier: Apache-2.0
"""What starts a board, held against its vendor's documents: files by their forms, the Pi firmware's settings."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator

from fl_tiny.image.boards import Board

Looked = Iterator[tuple[str, bool]]
EFI = "EFI/BOOT/BOOTAA64.EFI"
# What a chip's ROM or EEPROM wants beside config.txt. Source: raspberrypi.com/documentation, "Boot folder contents"
PI_FILES = {
    "bcm2837": ("bootcode.bin", "start.elf", "fixup.dat"),
    "bcm2711": ("start4.elf", "fixup4.dat"),
    "bcm2712": (),
}
# Source: as above, "config.txt", "Conditional filters"; those of models that our boards are
PI_FILTERS = {"bcm2837": ("pi3", "pi3+", "pi02"), "bcm2711": ("pi4", "pi400", "cm4"), "bcm2712": ("pi5",)}
HEAD = 64  # bytes of a kernel that say what it is


def on_fat(board: Board, read: Callable[[str], bytes | None]) -> Looked:
    """What must be on FAT for the board to start, and whether it is; ``read`` gives a file of it."""
    yield f"{EFI} a program of UEFI for arm64", is_efi(read(EFI) or b"")
    chip = board.kernel.device_trees[0].split("/")[-1].split("-")[0] if board.kernel.device_trees else ""
    if chip not in PI_FILES:
        return
    for name in PI_FILES[chip]:
        found = read(name) or b""
        yield f"{name} with something in it", len(found) > 1024
        if name.endswith(".elf"):
            yield f"{name} an ELF file", found.startswith(b"\x7fELF")
    settings = pi_settings((read("config.txt") or b"").decode(errors="replace"), chip)
    for key, value in {"arm_64bit": "1", "enable_uart": "1", "upstream_kernel": "1"}.items():
        yield f"{key}={value} in config.txt", settings.get(key) == value
    if chip == "bcm2712":  # else its EEPROM looks for marks of Raspberry Pi OS in the kernel
        yield "os_check=0 in config.txt", settings.get("os_check") == "0"
    name = settings.get("kernel", "")
    yield (
        f"the kernel of config.txt, {name or 'which is none'}, a program for arm64",
        is_code(read(name) or b"" if name else b""),
    )
    for path in board.kernel.device_trees:
        name = path.split("/")[-1]
        yield f"{name} at the top of FAT, a device tree", is_tree(read(name) or b"")


def pi_settings(text: str, chip: str) -> dict[str, str]:
    """What the firmware on a chip takes from config.txt: the last of each key, within filters that hold."""
    found, holds = {}, True
    for line in map(str.strip, text.split("\n")):
        if line.startswith("["):
            holds = line.strip("[]") in ("all", *PI_FILTERS[chip])
        elif holds and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key.strip()] = value.strip()
    return found


def is_efi(data: bytes) -> bool:
    """Is it a PE file for arm64? Source: PE format, "COFF file header"; 0xaa64 is its name of the machine."""
    if data[:2] != b"MZ" or len(data) < 64:
        return False
    at = int(struct.unpack_from("<L", data, 60)[0])
    return data[at : at + 6] == b"PE\0\0" + struct.pack("<H", 0xAA64)


def is_code(data: bytes) -> bool:
    """Does it begin with what U-Boot for arm64 begins with, a branch or nothing? Source: Arm ARM, B and NOP."""
    first = int.from_bytes(data[:4], "little")
    return len(data) > 1024 and (first >> 26 == 0b000101 or first == 0xD503201F)


def is_tree(data: bytes) -> bool:
    """Is it a flattened device tree, whole? Source: Devicetree specification 0.4, 5.2, magic and totalsize."""
    return len(data) > 40 and struct.unpack_from(">LL", data) == (0xD00DFEED, len(data))


def is_kernel(packed: bytes) -> bool:
    """Is it a Linux for arm64, packed by gzip or not? Source: Linux, arm64/booting.rst and zboot-header.S."""
    try:
        head = gzip.decompress(packed)[:HEAD] if packed[:2] == b"\x1f\x8b" else packed[:HEAD]
    except (OSError, EOFError, zlib.error):
        return False
    return head[56:60] == b"ARM\x64" or (head[4:8] == b"zimg" and head[56:60] == b"\xcd\x23\x82\x81")
