# SPDX-License-Identifier: Apache-2.0
"""What is kept of a board's image: what was looked at, sizes, figures, a log; and the strongest claim that it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fl_tiny.errors import DataError
from fl_tiny.files import read_bounded
from fl_tiny.image import disk
from fl_tiny.image.boards import CLAIMS
from fl_tiny.image.slot import slot_of
from fl_tiny.image.verify import Finding

LIMIT = 1 << 20  # bytes of a record or its log
# What of a slot is what, by patterns of paths; the first that fits
COMPONENTS = (
    ("kernel and initrd", r"boot/.*"),
    ("kernel modules, device trees", r"usr/lib/(modules|linux-image-[^/]*)/.*"),
    ("firmware", r"usr/lib/firmware/.*"),
    ("numpy, with BLAS", r"usr/lib/python3/dist-packages/numpy.*|usr/lib/[^/]*/(.*blas|.*lapack|libgfortran).*"),
    ("TFLite's runtime", r"usr/lib/fl-tiny/py[^/]*/.*|.*/tflite_runtime.*"),
    ("fl-tiny, with aiocoap", r"usr/lib/fl-tiny/.*"),
    ("Python", r"usr/lib/python3.*|usr/bin/python3.*"),
    ("systemd", r"usr/lib/systemd/.*|usr/lib/[^/]*/(systemd|libsystemd).*|usr/bin/.*ctl|usr/bin/udevadm"),
    ("the rest of Debian", r".*"),
)
# What a board's log shows. Source: systemd's console; the gateway's log (docs/operations.md)
BOOTED = r"Started fl-tiny-device\.s"
TRAINED = r"round published number=\d+ updates=[1-9]"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one image of a board. sizes: bytes by component; log: a file beside; figures: of a boot."""

    board: str
    date: str
    release: str
    kernel: str
    image_sha256: str
    image_mib: int
    checks: dict[str, int]
    missing: tuple[str, ...]
    sizes: dict[str, int]
    slot_mib: float
    machine: str = ""
    log: str = ""
    figures: dict[str, float] = field(default_factory=dict)


def record(image: Path, board: str, found: Iterable[Finding], date: str) -> Record:
    """A record of an image that was verified. Raises: DataError when it has no slot."""
    slot = slot_of(image)
    if slot is None:
        raise DataError(f"{image}: slot A holds no squashfs")
    found = list(found)
    told = dict(line.split("=", 1) for line in slot.text("etc/fl-tiny-release").split() if "=" in line)
    return Record(
        board,
        date,
        told.get("RELEASE", ""),
        slot.find("boot/config-*").removeprefix("boot/config-"),
        disk.sha256(image),
        image.stat().st_size >> 20,
        {each.check: each.looked_at for each in found},
        tuple(missing for each in found for missing in each.missing),
        components(slot.sizes),
        round(slot.packed / (1 << 20), 1),
    )


def components(sizes: dict[str, int]) -> dict[str, int]:
    """Bytes of a slot by component."""
    found = dict.fromkeys((name for name, _ in COMPONENTS), 0)
    for path, size in sizes.items():
        found[next(name for name, pattern in COMPONENTS if re.fullmatch(pattern, path))] += size
    return {name: size for name, size in found.items() if size}


def shown(kept: Record, folder: Path) -> str:
    """The strongest claim that a record shows, with its log in ``folder``."""
    if not kept.checks or kept.missing:
        return CLAIMS[0]
    path = folder / kept.log
    said = read_bounded(path, LIMIT).decode(errors="replace") if kept.log and path.is_file() else ""
    if not re.search(BOOTED, said):
        return "builds"
    return "trains" if re.search(TRAINED, said) and kept.figures.get("boot_to_round_s") else "boots"


def write(kept: Record, path: Path) -> None:
    """Keep a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(kept), indent=1) + "\n")


def read(path: Path) -> Record:
    """A record that was kept. Raises: DataError when it is none."""
    try:
        table: dict[str, Any] = json.loads(read_bounded(path, LIMIT))
        return Record(**{**table, "missing": tuple(table["missing"])})
    except (ValueError, KeyError, TypeError) as cause:
        raise DataError(f"{path} is no record of an image: {cause}") from cause
