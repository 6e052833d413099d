# SPDX-License-Identifier: Apache-2.0
"""States that a power cut may have left of a recorded disk, judged without booting them."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from e2e.fleet import cli

from fl_tiny.device import bootstate
from fl_tiny.device.bootfiles import PLACES, TRIED
from fl_tiny.image.disk import Part, read_table

from .blocklog import Entry, Replay, Write, entries, survivors
from .guest import run
from .test_grub import Case, expected

MIB = 1 << 20
DATA_EVERY = 5  # flushes of the data partition: it is judged at one of so many


@dataclass
class Seen:
    """What was judged. boots: states of GRUB's three files -> the slot it boots, and all that must be whole then."""

    fat_cuts: int = 0
    fat_states: int = 0
    of_data: int = 0
    boots: dict[Case, tuple[str, set[str]]] = field(default_factory=dict)

    def __str__(self) -> str:
        found = (
            f"{self.fat_cuts} cuts in writes to the FAT, {self.fat_states} states of it, {len(self.boots)} of the boot"
        )
        return f"{found} state's files; {self.of_data} states of the data partition"


class Crashes:
    """A disk as it was, what was written to it since, and what must hold at each time of it."""

    def __init__(self, disk: Path, log: Path, marks: list[tuple[int, int]], new: Path, folder: Path) -> None:
        """``marks``: bytes of the log and the samples acknowledged by then.   new: the release that was installed."""
        self._disk, self._log, self._marks, self._folder = disk, log, marks, folder
        parts = read_table(disk).parts
        self._fat, self._data = parts["boot"], parts["data"]
        self._slots = {"A": parts["slot-a"], "B": parts["slot-b"]}
        self._replay = Replay(disk, log)
        self._copy = folder / "fat.img"
        self._whole = {_squashfs(new, 0, new.stat().st_size)}
        self._digests: dict[str, str] = {}
        self._judged: set[bytes] = set()
        self._flushes = 0
        self.seen = Seen()

    def judge(self) -> Seen:
        """Go through the record. Raises: AssertionError at the first state that must not be."""
        with self._disk.open("rb") as disk:
            disk.seek(self._fat.start)
            self._copy.write_bytes(disk.read(self._fat.size))
        files = self._files()
        first, _ = expected(self._case(files))
        self._whole.add(self._slot(first))
        self._fixed = {name: data for name, data in files.items() if name not in (*PLACES, TRIED)}
        marks = list(self._marks)
        acknowledged = 0
        for entry in entries(self._log):
            while marks and entry.end > marks[0][0]:
                acknowledged = marks.pop(0)[1]
                self._judge_data(acknowledged)
            self._take(entry)
            write = entry.write
            if write is not None and _meets(write, self._fat):
                self._judge_fat()
            elif entry.flush and self._flushes % DATA_EVERY == 0:
                self._judge_data(acknowledged)
        self._replay.close()
        return self.seen

    def _take(self, entry: Entry) -> None:
        before = list(self._replay.waiting)
        self._replay.take(entry)
        lasting = [write for write in before if write not in self._replay.waiting]
        if entry.fua and entry.write is not None:
            lasting.append(entry.write)
        self._flushes += any(_meets(write, self._data) for write in lasting)
        for write in lasting:
            for name, part in self._slots.items():
                if _meets(write, part):
                    self._digests.pop(name, None)
            if _meets(write, self._fat):
                self._put(write, write.length)

    # ---- the boot partition ---------------------------------------------------------------------------------

    def _judge_fat(self) -> None:
        self.seen.fat_cuts += 1
        waiting = [write for write in self._replay.waiting if _meets(write, self._fat)]
        unsure = {n for n, p in self._slots.items() if any(_meets(write, p) for write in self._replay.waiting)}
        for left in survivors(waiting):
            undo = [(write.at - self._fat.start, self._read(write)) for write, _ in left]
            for write, length in left:
                self._put(write, length)
            self._judge_state(unsure)
            for at, data in reversed(undo):
                self._patch(at, data)

    def _judge_state(self, unsure: set[str]) -> None:
        """The boot partition as a cut left it."""
        self.seen.fat_states += 1
        files = self._files()
        case = self._case(files)
        name = hashlib.sha256(repr((sorted(files.items()), sorted(unsure), sorted(self._digests.items()))).encode())
        if name.digest() in self._judged:
            return
        self._judged.add(name.digest())
        kept = {name: data for name, data in files.items() if name not in (*PLACES, TRIED)}
        assert kept == self._fixed, f"other files changed: {set(kept) ^ set(self._fixed)}"
        boots, _ = expected(case)
        found = bootstate.newest(bootstate.Files(case[:2], case[2]))
        assert found is not None, "no boot state is readable"
        slots = {boots, found[1].good}
        self.seen.boots[case] = boots, slots
        for slot in slots:
            assert slot not in unsure, f"slot {slot} is named and not yet on the disk as a whole"
            assert self._slot(slot) in self._whole, f"slot {slot} is named and is neither the old release nor the new"

    def _files(self) -> dict[str, bytes]:
        """All files of the boot partition, by a reader of FAT that is not Linux's."""
        out = self._folder / "fat"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        run("mcopy", "-s", "-n", "-Q", "-i", self._copy, "::*", out)
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    @staticmethod
    def _case(files: dict[str, bytes]) -> Case:
        return files.get(PLACES[0]), files.get(PLACES[1]), files.get(TRIED)

    def _read(self, write: Write) -> bytes:
        with self._copy.open("rb") as file:
            file.seek(write.at - self._fat.start)
            return file.read(write.length)

    def _put(self, write: Write, length: int) -> None:
        self._patch(write.at - self._fat.start, self._replay.bytes_of(write)[:length])

    def _patch(self, at: int, data: bytes) -> None:
        with self._copy.open("r+b") as file:
            file.seek(at)
            file.write(data)

    # ---- slots and data -------------------------------------------------------------------------------------

    def _slot(self, name: str) -> str:
        """SHA-256 of the squashfs in a slot, of what lasts."""
        if name not in self._digests:
            part = self._slots[name]
            self._digests[name] = _squashfs(self._disk, part.start, part.size)
        return self._digests[name]

    def _judge_data(self, acknowledged: int) -> None:
        """The data partition without what waits: it can be repaired, and the device in it has what it acknowledged."""
        self.seen.of_data += 1
        part, out = self._folder / "data.img", self._folder / "device"
        part.unlink(missing_ok=True)
        place = [f"skip={self._data.start // MIB}", f"count={self._data.size // MIB}"]
        run("dd", f"if={self._disk}", f"of={part}", "bs=1M", *place, "conv=sparse", "status=none")
        done = subprocess.run(["e2fsck", "-fp", part], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode in (0, 1), f"e2fsck: {done.stdout}{done.stderr}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        run("debugfs", "-R", f"rdump /fl-tiny/device {out}", part)
        run("chown", "-R", "root:", out)  # else a command would become the guest's user
        held = cli("device", "status", out / "device")["samples"]
        assert held >= acknowledged, f"{held} samples, {acknowledged} were acknowledged"


def _meets(write: Write, part: Part) -> bool:
    return write.at < part.start + part.size and part.start < write.at + write.length


def _squashfs(file: Path, at: int, most: int) -> str:
    """SHA-256 of a squashfs without what pads it."""
    with file.open("rb") as source:
        source.seek(at)
        head = source.read(96)
        # Source: Linux, fs/squashfs/squashfs_fs.h, squashfs_super_block: magic at 0, bytes_used at 40
        size = struct.unpack_from("<Q", head, 40)[0] if head.startswith(b"hsqs") else 0
        source.seek(at)
        return hashlib.sha256(source.read(min(size, most))).hexdigest()
