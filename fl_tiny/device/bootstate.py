# SPDX-License-Identifier: Apache-2.0
"""Which of two slots a board boots: the state that Linux writes for GRUB, GRUB's mark of a try, what both mean.

Two state files are written in turn, so that a cut write leaves the other; a third file belongs to GRUB, which notes
there the generation that it has tried. Each is a GRUB environment block whose first sector says all, between a
generation and its repetition at the end (docs/adr/0060-boot-state.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

BLOCK = 1024  # bytes. Source: GRUB 2.06, include/grub/lib/envblk.h, what grub-editenv makes
SECTOR = 512
SIGNATURE = b"# GRUB Environment Block\n"
FIRST = 1_000_000_000  # ten digits always: GRUB reads a leading zero as octal, and a state keeps its length
SLOTS = ("A", "B")
NONE = "-"
_GENERATION = re.compile("1[0-9]{9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class State:
    """What Linux wants: boot ``good``, but ``trial`` once, if it has not been tried in this generation."""

    generation: int
    good: str
    trial: str | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """The three files as they are on the disk; None: missing or unreadable."""

    states: tuple[bytes | None, bytes | None]
    tried: bytes | None


class Phase(Enum):
    """Where a board stands between two releases."""

    SETTLED = "settled"  # nothing is on its way
    STAGED = "staged"  # installed, tried at the next start
    TRYING = "trying"  # this start is the try
    FELL_BACK = "fell back"  # it has been tried, and the good slot runs


def encode(state: State) -> bytes:
    """A state as a block."""
    generation = f"{state.generation:010d}"
    assert _GENERATION.fullmatch(generation) and state.good in SLOTS and state.trial in (*SLOTS, None)
    lines = f"fl_gen={generation}\nfl_good={state.good}\nfl_try={state.trial or NONE}\nfl_end={generation}\n"
    return _block(lines.encode())


def decode(block: bytes | None) -> State | None:
    """The state in a block; None when GRUB would not take it either: torn, damaged or missing."""
    found = _variables(block)
    generation, good, trial = found.get("fl_gen", ""), found.get("fl_good", ""), found.get("fl_try", "")
    if not _GENERATION.fullmatch(generation) or found.get("fl_end") != generation:
        return None
    if good not in SLOTS or trial not in (*SLOTS, NONE):
        return None
    return State(int(generation), good, trial if trial in SLOTS and trial != good else None)


def encode_tried(generation: int) -> bytes:
    """GRUB's mark as a block: GRUB writes it itself, but it never makes a file."""
    return _block(f"fl_tried={generation:010d}\n".encode())


def decode_tried(block: bytes | None) -> int | None:
    """The generation that GRUB has tried last; None: unreadable, which counts as tried."""
    found = _variables(block).get("fl_tried", "")
    return int(found) if _GENERATION.fullmatch(found) else None


def newest(files: Files) -> tuple[int, State] | None:
    """The valid state of the higher generation and the number of its file; None: no state is readable."""
    first, second = (decode(block) for block in files.states)
    if second is not None and (first is None or second.generation > first.generation):
        return 1, second
    return None if first is None else (0, first)


def phase(files: Files, booted: str | None) -> Phase:
    """Where the board stands, of what is on the disk and the slot that runs; None: it runs from no slot."""
    found = newest(files)
    if found is None or booted is None or found[1].trial is None:
        return Phase.SETTLED
    state = found[1]
    if booted == state.trial:
        return Phase.TRYING
    return Phase.FELL_BACK if decode_tried(files.tried) in (state.generation, None) else Phase.STAGED


def successor(files: Files, good: str, trial: str | None) -> tuple[int, State]:
    """The file to write next and its state: behind all generations that any file knows, a damaged one's too."""
    found = newest(files)
    known = [FIRST]
    for block in (*files.states, files.tried):
        known += [int(value) for value in _variables(block).values() if _GENERATION.fullmatch(value)]
    return 0 if found is None else 1 - found[0], State(max(known) + 1, good, trial)


def _block(lines: bytes) -> bytes:
    return (SIGNATURE + lines).ljust(BLOCK, b"#")


def _variables(block: bytes | None) -> dict[str, str]:
    """What GRUB finds in a block. Source: GRUB 2.06, grub-core/lib/envblk.c, grub_envblk_iterate."""
    found: dict[str, str] = {}
    if block is None or not block.startswith(SIGNATURE):
        return found
    at = len(SIGNATURE)
    while at < len(block):
        end = block.find(b"\n", at)
        if block[at : at + 1] != b"#":
            name = block.find(b"=", at)
            end = -1 if name < 0 else _end_of_value(block, name + 1)
            if end < 0:
                break
            value = re.sub(rb"\\(.)", rb"\1", block[name + 1 : end], flags=re.DOTALL)
            found[block[at:name].decode("latin-1")] = value.decode("latin-1")
        if end < 0:
            break
        at = end + 1
    return found


def _end_of_value(block: bytes, at: int) -> int:
    """Where the value that begins at ``at`` ends: at a line's end that no backslash hides; -1: nowhere."""
    found = re.compile(rb"(?:[^\\\n]|\\.)*\n", re.DOTALL).match(block, at)
    return -1 if found is None else found.end() - 1
