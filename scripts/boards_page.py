# SPDX-License-Identifier: Apache-2.0
"""Print docs/boards.md: what there is for each board and what was shown of it, from image/boards and docs/evidence.

Run by scripts/boards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fl_tiny.image import boards, evidence
from fl_tiny.image.boards import Base, Board
from fl_tiny.image.evidence import Record

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "docs" / "evidence"
MIB = 1 << 20
MEANING = {
    "drafted": "a board file; nothing was built",
    "builds": "an image was built, and `image verify` found all it looked for in it",
    "boots": "and came up in an emulator to a running device service; no real board",
    "trains": "and its update was in a published round of a gateway",
}
CHAINS = {
    "uefi": "the board's UEFI starts GRUB, which chooses the slot",
    "u-boot": "the Pi's firmware starts U-Boot, its EFI loader GRUB, which chooses the slot",
    "firmware": "the board's firmware alone",
}
FIGURES = {
    "boot_to_ssh_s": "power to an answer over SSH, s",
    "boot_to_service_s": "power to a running device service, s",
    "boot_to_round_s": "power to its update in a published round, s",
    "idle_rss_mib": "device service when idle, MiB of RSS",
    "training_rss_mib": "device service when training, its child included, MiB of RSS at most, shared pages twice",
    "training_pss_mib": "the same in PSS, shared pages once",
    "compressed_mib": "image, compressed, MiB",
}
INTRO = """# Boards

Made by `scripts/boards` from `image/boards/*.toml` and the records in [evidence/](evidence); a test holds it to them.
No claim is above what its record and log show, and **no image has run on a real board yet**. How to flash:
[flash.md](flash.md); another board: [porting.md](porting.md).

| claim | what was seen |
| --- | --- |
{meanings}

| board | claim | suite | kernel | seen by |
| --- | --- | --- | --- | --- |
{rows}

Every kernel must have, as `y` or `m`: {options}.
What a board needs besides stands in its section. `image build` refuses a kernel that lacks any, and names it.
"""
STORAGE = "{0.size_mib} MiB disk: {0.boot_mib} FAT, two slots of {0.slot_mib}, the rest data, which grows at first boot"


def main() -> None:
    """Print the page."""
    print(page(ROOT / "image", EVIDENCE), end="")


def page(recipes: Path, kept: Path) -> str:
    """The page of all boards."""
    base = boards.load_base(recipes)
    found = [(boards.load_board(recipes, name), record_of(kept, name)) for name in boards.names(recipes)]
    return INTRO.format(
        meanings="\n".join(f"| {claim} | {MEANING[claim]} |" for claim in boards.CLAIMS),
        rows="\n".join(row(board, record) for board, record in found),
        options=", ".join(base.kernel.options),
    ) + "".join(f"\n{section(board, base, record)}" for board, record in found)


def record_of(kept: Path, name: str) -> Record | None:
    """What was kept of a board, if anything was."""
    path = kept / f"{name}.json"
    return evidence.read(path) if path.is_file() else None


def row(board: Board, record: Record | None) -> str:
    """A board's row in the first table."""
    kernel = record.kernel if record else board.kernel.suite or board.suite
    kernel = "brought" if board.kernel.brought else kernel
    seen = f"[{Path(board.log).name}](evidence/{Path(board.log).name})" if board.log else "-"
    return f"| [{board.name}](#{board.name}) | {board.claim} | {board.suite} | {kernel} | {seen} |"


def section(board: Board, base: Base, record: Record | None) -> str:
    """All that there is to say of a board."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts(board))
    text = f"## {board.name}\n\n{board.title}.\n\n| | |\n| --- | --- |\n{rows}\n"
    return text + (f"\n{shown(record)}\n" if record else "\nNothing was built.\n")


def facts(board: Board) -> Iterator[tuple[str, str]]:
    """What the board's file says."""
    kernel, firmware = board.kernel, board.firmware
    yield "boot", CHAINS[board.boot.chain]
    yield (
        "kernel",
        "of yours, by `--kernel DEB`" if kernel.brought else f"{kernel.package} of {kernel.suite or board.suite}",
    )
    yield "options besides", ", ".join(kernel.options)
    if kernel.device_trees:
        yield "device trees", ", ".join(kernel.device_trees)
    if firmware.source:
        yield "firmware", firmware.source
    yield "console", ", ".join(board.console)
    yield "storage", STORAGE.format(board.disk)
    yield "memory", f"from {board.limits.memory_mib} MiB"
    for note in board.limits.notes:
        yield "limit", note


def shown(record: Record) -> str:
    """What a record shows."""
    looked = ", ".join(f"{check} {number}" for check, number in record.checks.items())
    lines = [
        f"Image of {record.date}, release {record.release}, kernel {record.kernel}, {record.image_mib} MiB,",
        f"SHA-256 `{record.image_sha256[:16]}…`. `image verify` looked at: {looked}; missing: {len(record.missing)}.",
    ]
    sizes = [f"| {name} | {size / MIB:.1f} |" for name, size in record.sizes.items()]
    total = sum(record.sizes.values()) / MIB
    lines += [
        "",
        "| in a slot | MiB |",
        "| --- | --- |",
        *sizes,
        f"| all | {total:.1f} |",
        f"| all, as squashfs | {record.slot_mib} |",
    ]
    if record.figures:
        lines += ["", f"Seen in {record.machine} ([log](evidence/{record.log})):", "", "| figure | |", "| --- | --- |"]
        lines += [f"| {what} | {record.figures[key]:g} |" for key, what in FIGURES.items() if key in record.figures]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
