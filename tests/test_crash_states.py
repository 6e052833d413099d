# SPDX-License-Identifier: Apache-2.0
"""Every state that a power cut may leave of a file that we write: the old bytes or the new, whole, and never neither.

What a writer asks of the file system is recorded; each prefix is rebuilt in each way that a file system may have kept
it: bytes that no fsync followed are there, half there or not, a rename that no fsync of its directory followed is there
or not, in any combination. Source: Pillai et al., All File Systems Are Not Created Equal (OSDI 2014), section 3.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fl_tiny.device import codefile
from fl_tiny.files import write_atomic

OLD, NEW = b"old" * 700, b"new" * 900
State = dict[str, bytes]  # what stands under each name


@dataclass
class Disk:
    """What a writer did, as events: (fsync, name), (rename, from, to), (directory)."""

    root: Path
    fsyncs: bool = True
    before: State = field(default_factory=dict)
    events: list[tuple[str, ...]] = field(default_factory=list)
    bytes_of: State = field(default_factory=dict)  # of drafts, as they were renamed or synced

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Record from now on. ``fsyncs`` False: a control whose writers do not wait for the disk."""
        self.before = {path.name: path.read_bytes() for path in self.root.iterdir()}
        fsync, replace = os.fsync, Path.replace

        def synced(handle: int) -> None:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if self.fsyncs and path == self.root:
                self.events.append(("directory",))
            elif self.fsyncs:
                self.bytes_of[path.name] = path.read_bytes()
                self.events.append(("fsync", path.name))
            fsync(handle)

        def renamed(path: Path, target: Path) -> Path:
            self.bytes_of[path.name] = path.read_bytes()
            self.events.append(("rename", path.name, Path(target).name))
            return replace(path, target)

        patch.setattr(os, "fsync", synced)
        patch.setattr(Path, "replace", renamed)

    def states(self) -> Iterator[tuple[bool, State]]:
        """Every state after a cut; whether the writer had returned by then."""
        for cut in range(len(self.events) + 1):
            done = self.events[:cut]
            synced = {event[1] for event in done if event[0] == "fsync"}
            renames = [(at, *event[1:]) for at, event in enumerate(done) if event[0] == "rename"]
            last = max((at for at, event in enumerate(done) if event[0] == "directory"), default=-1)
            sure = [(source, target) for at, source, target in renames if at < last]
            open_ = [(source, target) for at, source, target in renames if at > last]
            for kept in itertools.product((False, True), repeat=len(open_)):
                for part in (0.0, 0.5, 1.0):
                    state = dict(self.before)
                    for source, target in [*sure, *(pair for pair, k in zip(open_, kept, strict=True) if k)]:
                        data = self.bytes_of[source]
                        state[target] = data if source in synced else data[: int(part * len(data))]
                    yield cut == len(self.events), state


@pytest.mark.parametrize("old", [None, OLD], ids=["made", "replaced"])
def test_a_cut_leaves_the_old_or_the_new_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None
) -> None:
    if old is not None:
        (tmp_path / "file").write_bytes(old)
    disk = Disk(tmp_path)
    with monkeypatch.context() as patch:
        disk.watch(patch)
        write_atomic(tmp_path / "file", NEW)
    found = list(disk.states())
    assert {state.get("file") for _, state in found} == {old, NEW}
    assert {state.get("file") for returned, state in found if returned} == {NEW}, "on the disk when it returns"


def test_a_cut_leaves_a_cards_file_with_the_code_or_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "fl-tiny.toml"
    card.write_text('lan_timing = true\ncode = "FL1:ATECVN4OULSVY:A44GXNIQMBY4OB4SVNIKZX7YEI7"\n')
    before, disk = card.read_bytes(), Disk(tmp_path)
    with monkeypatch.context() as patch:
        disk.watch(patch)
        assert codefile.erase_code(card)
    after = card.read_bytes()
    assert b"FL1" not in after and b"lan_timing" in after
    assert {state[card.name] for _, state in disk.states()} == {before, after}
    assert {state[card.name] for returned, state in disk.states() if returned} == {after}


def test_without_fsync_a_cut_leaves_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(OLD)
    disk = Disk(tmp_path, fsyncs=False)
    with monkeypatch.context() as patch:
        disk.watch(patch)
        write_atomic(tmp_path / "file", NEW)
    left = {state["file"] for _, state in disk.states()}
    assert b"" in left and left - {OLD, NEW}
    assert OLD in {state["file"] for returned, state in disk.states() if returned}, "and what was acknowledged is gone"
