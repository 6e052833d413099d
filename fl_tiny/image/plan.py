# SPDX-License-Identifier: Apache-2.0
"""What is done to make a board's image, step by step: from a board and a release, without looking at anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from uuid import UUID, uuid5

from fl_tiny.image.boards import ALIGN_MIB, Base, Board

MIB = 1 << 20
NAMES = UUID(
    "6f1c1f54-5b7e-4d0b-9d0a-f17109470000"
)  # drawn once; what is the same in each image of a board comes of it
PARTITIONS = ("boot", "slot-a", "slot-b", "data")
FAT_LABEL = "FL-TINY"
DATA_LABEL = "fl-data"
GRUB_MODULES = (
    "boot", "cat", "configfile", "echo", "eval", "fat", "fdt", "gzio", "halt", "linux", "loadenv", "minicmd", "normal",
    "part_msdos", "reboot", "regexp", "search", "search_fs_file", "search_label", "sleep", "squash4", "test", "xzio",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Release:
    """What an image carries of ours: version, packages; a kernel that was given; the CA whose bundles it will take.

    release: dotted numbers, by which a board tells an older bundle.
    """

    version: str
    release: str
    packages: tuple[str, ...] = ("fl-tiny", "fl-tiny-tflite")
    kernel: str = ""
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Root:
    """Debian's packages as a tree; and packages that are fetched only, for their files."""

    suite: str
    backports: str
    packages: tuple[str, ...]
    fetched: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Our packages and files in that root, the initrd made, what no board needs left out; all as one squashfs."""

    packages: tuple[str, ...]
    kernel: str
    options: tuple[str, ...]
    ca: str
    words: tuple[tuple[str, str], ...]
    enable: tuple[str, ...]
    mask: tuple[str, ...]
    modules: tuple[str, ...]
    initrd: tuple[str, ...]
    device_trees: tuple[str, ...]
    remove: tuple[str, ...]
    limit_mib: int


@dataclass(frozen=True, slots=True)
class Boot:
    """The FAT partition: GRUB and its configuration, files of packages, files of the slot."""

    size_mib: int
    serial: str
    loader: str
    modules: tuple[str, ...]
    words: tuple[tuple[str, str], ...]
    templates: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    from_slot: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Data:
    """An empty ext4 for what persists."""

    size_mib: int
    uuid: str


@dataclass(frozen=True, slots=True)
class Disk:
    """A partition table and its parts: name, start, size, MBR type."""

    size_mib: int
    signature: str
    parts: tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Papers:
    """What goes with an image: its block map, compressed form, bill of materials, list of licences, lock."""

    stem: str
    title: str


Step = Root | Slot | Boot | Data | Disk | Papers


def plan(board: Board, base: Base, release: Release) -> tuple[Step, ...]:
    """The steps of one image, in order."""
    return (
        _root(board, base),
        _slot(board, base, release),
        _boot(board, release),
        Data(_data_mib(board), str(uuid5(NAMES, f"{board.name} data"))),
        Disk(board.disk.size_mib, signature(board), tuple(_parts(board))),
        Papers(stem(board, release), board.title),
    )


def stem(board: Board, release: Release) -> str:
    """How the files of an image are called, without their endings."""
    return f"fl-tiny-{release.version}-{board.name}"


def signature(board: Board) -> str:
    """The disk's signature, 8 hexadecimal digits: Linux makes the partitions' PARTUUID of it."""
    return _digits(f"{board.name} disk")


def cmdline(board: Board) -> str:
    """What the kernel is told besides its root; the last console is the one that systemd speaks on."""
    consoles = " ".join(f"console={each}" for each in board.console)
    return f"rootfstype=squashfs ro rootwait fsck.repair=yes panic=10 {consoles}"


def options(board: Board, base: Base) -> tuple[str, ...]:
    """What a kernel of this board must have in its config, as y or m."""
    return base.kernel.options + board.kernel.options


def describe(steps: tuple[Step, ...]) -> str:
    """The steps as text for people: a line a step, below it what it is made of."""
    return "\n".join(line for step in steps for line in _lines(step)) + "\n"


def _root(board: Board, base: Base) -> Root:
    packages = set(base.packages) | set(board.firmware.root)
    if board.kernel.package:
        packages.add(board.kernel.package)
    fetched = sorted({board.boot.loader, *board.firmware.packages})
    return Root(board.suite, board.kernel.suite, tuple(sorted(packages)), tuple(fetched))


def _slot(board: Board, base: Base, release: Release) -> Slot:
    kernel = board.kernel
    ours = tuple(p for p in release.packages if p != "fl-tiny-tflite" or board.suite == "bookworm")
    return Slot(
        ours,
        release.kernel,
        options(board, base),
        release.ca,
        _words(board, release),
        base.enable,
        base.mask,
        base.kernel.modules + kernel.modules,
        base.kernel.initrd + kernel.initrd,
        kernel.device_trees,
        base.slim.remove,
        board.disk.slot_mib,
    )


def _boot(board: Board, release: Release) -> Boot:
    firmware = board.firmware
    trees = board.kernel.device_trees if board.boot.chain == "u-boot" else ()
    # U-Boot's EFI looks below dtb/; the Pi's firmware at the top, and hands U-Boot what it finds (docs/porting.md)
    copies = [(each, target) for each in trees for target in (f"dtb/{each}", each.rsplit("/", 1)[-1])]
    return Boot(
        board.disk.boot_mib,
        _digits(f"{board.name} boot"),
        board.boot.loader,
        GRUB_MODULES,
        _words(board, release),
        tuple(_templates(board)),
        tuple(sorted(firmware.files.items())),
        tuple(copies),
    )


def _templates(board: Board) -> Iterator[tuple[str, str]]:
    """Files of templates/ and where they go on FAT."""
    yield "grub.cfg", "grub/grub.cfg"
    yield "fl-tiny.toml", "fl-tiny.toml"
    if board.boot.config:
        yield board.boot.config, "config.txt"


def _words(board: Board, release: Release) -> tuple[tuple[str, str], ...]:
    """What templates and the overlay call by names."""
    disk = signature(board)
    found = {
        "@SIGNATURE@": disk,
        "@SLOT_A@": f"PARTUUID={disk}-02",
        "@SLOT_B@": f"PARTUUID={disk}-03",
        "@CMDLINE@": cmdline(board),
        "@COMPATIBLE@": board.compatible,
        "@RELEASE@": release.release,
    }
    return tuple(found.items())


def _data_mib(board: Board) -> int:
    disk = board.disk
    return disk.size_mib - ALIGN_MIB - disk.boot_mib - 2 * disk.slot_mib


def _parts(board: Board) -> Iterator[tuple[str, int, int, int]]:
    disk = board.disk
    start = ALIGN_MIB
    sizes = (disk.boot_mib, disk.slot_mib, disk.slot_mib, _data_mib(board))
    for name, size in zip(PARTITIONS, sizes, strict=True):
        yield name, start, size, 0x0C if name == "boot" else 0x83  # FAT32 by LBA, which Pi firmware wants; Linux
        start += size


def _digits(of: str) -> str:
    return hashlib.sha256(f"{NAMES} {of}".encode()).hexdigest()[:8]


def _lines(step: Step) -> Iterator[str]:
    title = (type(step).__doc__ or "").split("\n")[0]
    yield f"{type(step).__name__.lower()}: {title}"
    for each in fields(step):
        value = getattr(step, each.name)
        if value in ("", ()):
            continue
        yield f"    {each.name}:" + (f" {_shown(value)}" if not isinstance(value, tuple) else "")
        if isinstance(value, tuple):
            yield from (f"        {_shown(one)}" for one in value)


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
