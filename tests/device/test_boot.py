# SPDX-License-Identifier: Apache-2.0
"""Which slot boots: no cut of a write, no damaged file and no repeated start leaves a board without its good slot."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.device import bootfiles, bootstate
from fl_tiny.device.bootfiles import PLACES, TRIED, BootFiles
from fl_tiny.device.bootstate import BLOCK, FIRST, SECTOR, Files, Phase, State
from fl_tiny.errors import ConfigError

TEMPLATES = Path(__file__).parents[2] / "image/templates"
Write = tuple[Path, int, bytes]


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    """A boot partition as it is flashed: slot A is good."""
    for name in (*PLACES, TRIED):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes((TEMPLATES / name).read_bytes())
    return tmp_path


def start(boot: Path) -> str:
    """What GRUB does at a start, by image/templates/grub.cfg: the slot it boots, its mark written before.

    tests/boot/test_grub.py puts the same states to a real GRUB.
    """
    files = BootFiles(boot, None).read()
    found = bootstate.newest(files)
    if found is None:
        return "A"
    state, tried = found[1], bootstate.decode_tried(files.tried)
    if state.trial is None or tried in (None, state.generation):
        return state.good
    (boot / TRIED).write_bytes(bootstate.encode_tried(state.generation))
    return state.trial


def writes(boot: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> list[Write]:
    """What ``change`` writes, in order, as it would reach the disk."""
    seen: list[Write] = []
    real, opened = bootfiles.os.pwrite, bootfiles.os.open
    names: dict[int, Path] = {}

    def remember(path: Path, *rest: int) -> int:
        handle = opened(path, *rest)
        names[handle] = Path(path)
        return handle

    def record(handle: int, data: bytes, at: int) -> int:
        seen.append((names[handle], at, data))
        return real(handle, data, at)

    with monkeypatch.context() as patched:
        patched.setattr(bootfiles.os, "open", remember)
        patched.setattr(bootfiles.os, "pwrite", record)
        change()
    return seen


def test_an_update_is_tried_once_and_stays_when_it_is_confirmed(boot: Path) -> None:
    assert start(boot) == "A"
    running = BootFiles(boot, "A")
    assert running.phase() is Phase.SETTLED
    running.drop("B")
    running.stage("B")
    assert (running.phase(), running.next()) == (Phase.STAGED, "B")
    assert start(boot) == "B"
    tried = BootFiles(boot, "B")
    assert (tried.phase(), tried.next()) == (Phase.TRYING, "A")
    tried.confirm()
    assert (tried.phase(), tried.next()) == (Phase.SETTLED, "B")
    assert [start(boot) for _ in range(3)] == ["B", "B", "B"]


def test_an_update_that_is_not_confirmed_is_left_for_good(boot: Path) -> None:
    BootFiles(boot, "A").stage("B")
    assert [start(boot) for _ in range(3)] == ["B", "A", "A"]
    back = BootFiles(boot, "A")
    assert back.phase() is Phase.FELL_BACK
    back.settle()
    assert back.phase() is Phase.SETTLED
    assert start(boot) == "A"
    back.stage("B")
    assert start(boot) == "B", "another update gets its try"


def test_during_a_try_nothing_is_installed(boot: Path) -> None:
    BootFiles(boot, "A").stage("B")
    assert start(boot) == "B"
    trying = BootFiles(boot, "B")
    before = trying.read()
    for change in (trying.stage, trying.drop):
        with pytest.raises(ConfigError, match="being tried"):
            change("A")
    assert trying.read() == before


def test_the_good_slot_is_never_given_up(boot: Path) -> None:
    with pytest.raises(ConfigError, match="good one"):
        BootFiles(boot, "A").drop("A")


def test_a_staged_update_that_is_overwritten_is_not_tried(boot: Path) -> None:
    BootFiles(boot, "A").stage("B")
    BootFiles(boot, "A").drop("B")  # another install begins before the next start
    assert start(boot) == "A"


def test_an_unreadable_mark_counts_as_tried_and_is_made_anew_for_the_next_update(boot: Path) -> None:
    BootFiles(boot, "A").stage("B")
    (boot / TRIED).write_bytes(b"\0" * BLOCK)
    assert [start(boot) for _ in range(2)] == ["A", "A"]
    assert BootFiles(boot, "A").phase() is Phase.FELL_BACK
    BootFiles(boot, "A").settle()
    BootFiles(boot, "A").stage("B")
    assert start(boot) == "B"


def test_a_generation_that_was_tried_is_never_given_again(boot: Path) -> None:
    """Else an update after the loss of the newer file would count as tried."""
    BootFiles(boot, "A").stage("B")
    assert [start(boot), start(boot)] == ["B", "A"]
    files = BootFiles(boot, "A").read()
    newest = bootstate.newest(files)
    assert newest is not None
    (boot / PLACES[newest[0]]).write_bytes(b"\xff" * BLOCK)
    BootFiles(boot, "A").stage("B")
    assert start(boot) == "B"


def changes(boot: Path) -> dict[str, tuple[Callable[[], None], set[str]]]:
    """Each change of a life from A to B, and the slots that may boot when it is cut."""
    return {
        "drop": (lambda: BootFiles(boot, "A").drop("B"), {"A", "B"}),  # B is whole until the drop has returned
        "stage": (lambda: BootFiles(boot, "A").stage("B"), {"A", "B"}),
        "confirm": (lambda: BootFiles(boot, "B").confirm(), {"A", "B"}),
        "settle": (lambda: BootFiles(boot, "A").settle(), {"A"}),
    }


@pytest.mark.parametrize("life", [("stage", "confirm"), ("stage", "settle"), ("stage", "drop"), ("drop", "stage")])
@pytest.mark.parametrize("grain", [SECTOR, 1])
def test_a_cut_at_any_byte_of_any_write_boots(
    boot: Path, monkeypatch: pytest.MonkeyPatch, life: tuple[str, ...], grain: int
) -> None:
    """Sectors of 512 B are what a disk promises to write whole; here even a torn one, by a byte, must boot."""
    looked = 0
    for name in life:
        change, allowed = changes(boot)[name]
        if name in ("confirm", "settle"):
            assert start(boot) == "B"
        if name == "settle":
            assert start(boot) == "A"
        before = {path: (boot / path).read_bytes() for path in (*PLACES, TRIED)}
        made = writes(boot, monkeypatch, change)
        after = {path: (boot / path).read_bytes() for path in before}
        for number, (path, at, data) in enumerate(made):
            for length in range(0, len(data) + 1, grain):
                for other, content in before.items():
                    (boot / other).write_bytes(content)
                for earlier, where, whole in (*made[:number], (path, at, data[:length])):
                    content = bytearray(earlier.read_bytes())
                    content[where : where + len(whole)] = whole
                    earlier.write_bytes(content)
                first = start(boot)
                assert first in allowed, (name, number, length)
                assert start(boot) == start(boot), "starts settle: nothing is tried again and again"
                looked += 1
        for path, content in after.items():
            (boot / path).write_bytes(content)
    assert looked > len(life)


def test_a_state_is_written_by_one_sector(boot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = writes(boot, monkeypatch, lambda: BootFiles(boot, "A").stage("B"))
    assert [(at, len(data)) for _, at, data in made] == [(0, SECTOR)]


@given(st.data())
def test_a_torn_or_damaged_state_is_none_or_whole(data: st.DataObject) -> None:
    generations = st.integers(FIRST, FIRST + 100_000)
    old = State(data.draw(generations), data.draw(st.sampled_from("AB")), None)
    new = State(data.draw(generations), data.draw(st.sampled_from("AB")), None)
    cut = data.draw(st.integers(0, BLOCK))
    torn = bootstate.encode(new)[:cut] + bootstate.encode(old)[cut:]
    found = bootstate.decode(torn)
    if old.generation != new.generation:
        assert found in (None, old, new)


@given(st.binary(max_size=2 * BLOCK), st.binary(max_size=100))
def test_any_bytes_are_judged(noise: bytes, lines: bytes) -> None:
    for block in (noise, bootstate.SIGNATURE + noise, bootstate.SIGNATURE + lines.ljust(BLOCK, b"#"), None):
        state = bootstate.decode(block)
        assert state is None or state.good in "AB"
        bootstate.decode_tried(block)
        number, following = bootstate.successor(Files((block, None), block), "A", "B")
        assert number in (0, 1)
        assert bootstate.decode(bootstate.encode(following)) == following


def test_what_is_flashed_is_what_the_code_would_write() -> None:
    found = [(TEMPLATES / name).read_bytes() for name in (*PLACES, TRIED)]
    assert found == [
        bootstate.encode(State(FIRST + 1, "A")),
        bootstate.encode(State(FIRST, "A")),
        bootstate.encode_tried(FIRST),
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_the_loss_of_one_file_brings_no_older_release_back(boot: Path, number: int) -> None:
    BootFiles(boot, "A").stage("B")
    assert start(boot) == "B"
    BootFiles(boot, "B").confirm()
    (boot / PLACES[number]).write_bytes(b"\0" * BLOCK)
    assert start(boot) == "B"


def test_a_missing_file_is_made_anew(boot: Path) -> None:
    for lost in itertools.product((False, True), repeat=3):
        BootFiles(boot, "A").confirm()
        for name, gone in zip((*PLACES, TRIED), lost, strict=True):
            if gone:
                (boot / name).unlink(missing_ok=True)
        assert start(boot) == "A"
        BootFiles(boot, "A").stage("B")
        assert start(boot) == "B"
        BootFiles(boot, "B").confirm()
        assert start(boot) == "B"
        BootFiles(boot, "B").stage("A")
        assert start(boot) == "A"
        BootFiles(boot, "A").confirm()
