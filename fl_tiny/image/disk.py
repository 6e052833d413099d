# SPDX-License-Identifier: Apache-2.0
"""An image's partition table, and its FAT partition read and written by mtools, without mounting anything."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from fl_tiny import files
from fl_tiny.errors import DataError
from fl_tiny.image import tools
from fl_tiny.image.plan import PARTITIONS

SECTOR = 512
MAGIC = b"\x55\xaa"  # the last two bytes of the first sector
LIMIT = 1 << 40  # bytes of an image; a guess


@dataclass(frozen=True, slots=True)
class Part:
    """A partition: where it begins, how long it is, its type in the table."""

    start: int  # bytes
    size: int  # bytes
    kind: int


@dataclass(frozen=True, slots=True)
class Table:
    """An MBR: the disk's signature, its partitions by their names of ours."""

    signature: str
    parts: dict[str, Part]


def read_table(image: Path) -> Table:
    """The partition table of an image of ours. Raises: DataError when it is none."""
    with files.open_plain(image, LIMIT) as file:
        sector = file.read(SECTOR)
        size = file.seek(0, 2)
    if len(sector) < SECTOR or sector[510:] != MAGIC:
        packed = image.suffix in (".xz", ".zst", ".gz")
        hint = f"unpack it first: xz -dk {image}" if packed else "an image of fl-tiny image build"
        raise DataError(f"{image} has no partition table", hint)
    parts = {}
    for number, name in enumerate(PARTITIONS):
        # Source: UEFI specification 2.10, table 5.2: type at 4, first sector at 8, count at 12 of each of 4 entries
        kind, first, count = struct.unpack_from("<B3xLL", sector, 446 + 16 * number + 4)
        part = Part(first * SECTOR, count * SECTOR, kind)
        if not kind or not count or part.start + part.size > size:
            raise DataError(f"{image}: partition {number + 1} ({name}) is missing or beyond the file's end")
        parts[name] = part
    return Table(sector[440:444][::-1].hex(), parts)


def read_fat(image: Path, path: str) -> bytes | None:
    """A file of the FAT partition; None when it is not there."""
    at = read_table(image).parts["boot"].start
    if not tools.succeeds("mdir", "-b", "-i", f"{image}@@{at}", f"::{path}"):
        return None
    return tools.run_bytes("mcopy", "-n", "-i", f"{image}@@{at}", f"::{path}", "-")


def write_fat(image: Path, path: str, source: Path) -> None:
    """Put a file onto the FAT partition, in place of what had its name."""
    at = read_table(image).parts["boot"].start
    tools.run("mcopy", "-o", "-m", "-i", f"{image}@@{at}", source, f"::{path}")


def list_fat(image: Path) -> set[str]:
    """The paths of all files of the FAT partition."""
    at = read_table(image).parts["boot"].start
    lines = tools.run("mdir", "-b", "-/", "-a", "-i", f"{image}@@{at}", "::").split("\n")
    return {line.removeprefix("::/") for line in lines if line and not line.endswith("/")}


def sha256(path: Path) -> str:
    """The digest of a file of any size."""
    with path.open("rb") as file:
        return files.sha256(file).hex()


def copy_out(image: Path, name: str, target: Path) -> None:
    """A partition as a file."""
    part = read_table(image).parts[name]
    with image.open("rb") as source, target.open("wb") as out:
        source.seek(part.start)
        left = part.size
        while left:
            piece = source.read(min(left, 1 << 20))
            out.write(piece)
            left -= len(piece)
