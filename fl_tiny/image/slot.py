# SPDX-License-Identifier: Apache-2.0
"""A slot where it lies in an image: its files and their sizes, read by unsquashfs without copying it out."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from fl_tiny.image import disk, tools

PACKED_AT = 40  # Source: Linux, fs/squashfs/squashfs_fs.h, bytes_used of the super block


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot in an image: how unsquashfs finds it, the files in it with their bytes, how many it takes packed."""

    words: tuple[str, ...]
    sizes: dict[str, int]
    packed: int

    def read(self, path: str) -> bytes:
        """A file of it."""
        return tools.run_bytes("unsquashfs", *self.words[:2], "-cat", self.words[2], path)

    def text(self, path: str) -> str:
        """A file of it, as text."""
        return self.read(path).decode(errors="replace")

    def find(self, pattern: str) -> str:
        """The first file whose path a pattern fits; empty when there is none."""
        return next((path for path in sorted(self.sizes) if fnmatch(path, pattern)), "")


def slot_of(image: Path, name: str = "slot-a") -> Slot | None:
    """A slot of an image; None when it holds no squashfs."""
    start = disk.read_table(image).parts[name].start
    words = ("-o", str(start), str(image))
    if not tools.succeeds("unsquashfs", *words[:2], "-s", words[2]):
        return None
    lines = tools.run("unsquashfs", *words[:2], "-d", "", "-lln", words[2]).split("\n")
    # mode, owner, size, day, time, /path; a link's path is followed by what it points to
    fields = [line.split(None, 5) for line in lines if line[:1] in ("-", "l")]
    with image.open("rb") as file:
        file.seek(start + PACKED_AT)
        packed = int.from_bytes(file.read(8), "little")
    return Slot(words, {f[5].split(" -> ")[0].lstrip("/"): int(f[2]) for f in fields}, packed)
