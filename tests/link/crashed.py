# SPDX-License-Identifier: Apache-2.0
"""Every kind of state that a power cut may leave of a SQLite file that our code writes, made from a system-call trace.

``record`` runs tests/link/guest.py under strace. Before each fsync, and at each acknowledgement, everything written
since the last fsync of its file may be on the disk or not, in any order and in sectors of 512 B; a name that no fsync
of the directory followed may be missing. ``states`` draws from that. Source: SQLite, How To Corrupt An SQLite Database
File, section 3; Zheng et al., Torturing Databases for Fun and Profit (OSDI 2014).
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTOR = 512
HEADER = 24  # bytes before a page in the log. Source: sqlite.org, WAL-mode File Format
CALLS = "openat,close,pwrite64,write,fsync,fdatasync,ftruncate,unlink"
LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
Acks = dict[str, int]


@dataclass(frozen=True)
class Write:
    """Bytes at a place; data None: the file ends there."""

    at: int
    data: bytes | None


@dataclass
class File:
    """What is surely on the disk, and what may be."""

    sure: bytearray = field(default_factory=bytearray)
    open: list[Write] = field(default_factory=list)
    named: bool = True  # an fsync of the directory followed its making

    def write(self, write: Write) -> None:
        """A frame's header and its page are two calls, one right after the other, and one write here.

        Apart they make a state that fools SQLite 3.40: a new header, and beside it in the same sector the old head of
        page 1, whose page count, first free page and number of free pages are off by -1, +1 and +1. The sums of a
        frame are linear and such differences cancel out: one state in 21,443.
        """
        last = self.open[-1] if self.open else None
        if last and last.data and write.data and len(last.data) == HEADER and last.at + HEADER == write.at:
            self.open[-1] = Write(last.at, last.data + write.data)
        else:
            self.open.append(write)

    def sync(self) -> None:
        self.sure = self.after(self.open)
        self.open = []

    def after(self, writes: list[Write]) -> bytearray:
        data = bytearray(self.sure)
        for write in writes:
            if write.data is None:
                data = data[: write.at].ljust(write.at, b"\0")
                continue
            data = data.ljust(write.at, b"\0")
            data[write.at : write.at + len(write.data)] = write.data
        return data


@dataclass
class Cut:
    """A moment: what had been acknowledged, and the files by name."""

    acks: Acks
    files: dict[str, File]


def can_trace() -> bool:
    """Is strace here, and may it trace? In some containers it may not."""
    probe = ["strace", "-o", os.devnull, "true"]
    return shutil.which("strace") is not None and subprocess.run(probe, check=False).returncode == 0


def record(role: str, tree: Path, acks: int, synchronous: str = "FULL") -> Path:
    """Run a gateway's or a device's store until it has acknowledged so often; the trace."""
    trace = tree.with_name("trace")
    words = ["strace", "-f", "-qq", "-xx", "-s", "200000", "-e", f"trace={CALLS}", "-o", str(trace)]
    words += [sys.executable, "-m", "tests.link.guest", role, str(tree), synchronous, "wal_autocheckpoint=60"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT, env=environment, start_new_session=True)
    assert run.stdout
    seen = 0
    for line in run.stdout:
        seen += line.startswith(b"ack ")
        if seen == acks:
            break
    os.killpg(run.pid, signal.SIGKILL)
    run.stdout.close()
    run.wait()
    assert seen == acks, "the store did not come so far"
    return trace


class Replay:
    """A trace, played: which files are open, what they hold, what was acknowledged."""

    def __init__(self, tree: dict[str, bytes], folder: str) -> None:
        self.files = {name: File(bytearray(data)) for name, data in tree.items()}
        self._folder = folder
        self._open: dict[int, str] = {}  # "" for the directory
        self._acks: Acks = {}

    def moments(self, trace: Path) -> Iterator[Cut]:
        """Before each fsync and behind each acknowledgement."""
        for line in trace.read_text().split("\n"):
            found = LINE.match(line)
            if not found or int(found[3]) < 0:
                continue
            call, words = found[1], found[2]
            texts = [bytes.fromhex(text.replace("\\x", "")) for text in TEXT.findall(words)]
            handle = int(words.split(",")[0]) if words[0].isdigit() else -1
            if call == "openat":
                self._opened(os.fsdecode(texts[0]), int(found[3]))
            elif call == "unlink":
                assert os.fsdecode(texts[0]).rpartition("/")[2] not in self.files, "its store is open"
            elif call == "write" and handle == 1 and texts[0].startswith(b"ack "):
                _, what, number = texts[0].split()
                self._acks = {**self._acks, what.decode(): int(number)}
                yield Cut(self._acks, self.files)
            elif handle in self._open:
                if "sync" in call:
                    yield Cut(self._acks, self.files)
                self._called(call, handle, words, texts)

    def _opened(self, path: str, handle: int) -> None:
        where, _, name = path.rpartition("/")
        self._open.pop(handle, None)
        if path == self._folder:
            self._open[handle] = ""
        elif where == self._folder and name.startswith("state.db") and not name.endswith("-shm"):
            self._open[handle] = name
            self.files.setdefault(name, File(named=False))

    def _called(self, call: str, handle: int, words: str, texts: list[bytes]) -> None:
        name = self._open[handle]
        if call == "close":
            del self._open[handle]
        elif call == "pwrite64":
            self.files[name].write(Write(int(words.rsplit(", ", 1)[1]), texts[0]))
        elif call == "ftruncate":
            self.files[name].open.append(Write(int(words.rsplit(", ", 1)[1]), None))
        elif name:
            assert "sync" in call, "SQLite was built with pwrite"
            self.files[name].sync()
        else:
            for file in self.files.values():
                file.named = True


def states(cut: Cut, rng: random.Random, drawn: int) -> Iterator[dict[str, bytes]]:
    """What may stand under each name: nothing or all of what is open, each file by itself, and so many at random."""
    names = sorted(cut.files)
    for which in range(2 ** len(names)):
        picked = {name: which >> at & 1 for at, name in enumerate(names)}
        yield {
            name: bytes(file.after(file.open if picked[name] else []))
            for name, file in cut.files.items()
            if file.named or picked[name]
        }
    if any(file.open for file in cut.files.values()):
        for _ in range(drawn):
            yield {
                name: bytes(file.after(some(file.open, rng)))
                for name, file in cut.files.items()
                if file.named or rng.random() < 0.5
            }


def some(writes: list[Write], rng: random.Random) -> list[Write]:
    """Some of what is open: in sectors each by itself, or all up to one that is torn, or all but one."""
    how = rng.randrange(3)
    if not writes or how == 2:
        left = rng.randrange(len(writes)) if writes else 0
        return [write for at, write in enumerate(writes) if at != left]
    if how == 1:
        last = rng.randrange(len(writes))
        torn = writes[last]
        whole = len(torn.data or b"") // SECTOR
        part = [Write(torn.at, torn.data[: SECTOR * rng.randint(0, whole)])] if torn.data else []
        return [*writes[:last], *part]
    kept = []
    for write in writes:
        if write.data is None:
            kept += [write] if rng.random() < 0.5 else []
            continue
        first = SECTOR - write.at % SECTOR
        edges = [0, *range(first, len(write.data), SECTOR), len(write.data)]
        kept += [
            Write(write.at + a, write.data[a:b]) for a, b in itertools.pairwise(edges) if a < b and rng.random() < 0.5
        ]
    return kept


def put(folder: Path, state: dict[str, bytes]) -> Path:
    """A state as files; the database's path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in state.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    return folder / "state.db"
