# SPDX-License-Identifier: Apache-2.0
"""A program that may write in the spool, or in DIR/update, reaches no other file by it and stops nothing.

docs/failures.md, rows 128 and 129.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_tiny.device import bundle, update
from fl_tiny.device.machine import Machine
from fl_tiny.device.sources import ends, spool
from fl_tiny.errors import DataError, FlTinyError
from fl_tiny.protocol.release import Bundle
from tests.device.sources.conftest import Board, board, enrolled, pixels, until  # noqa: F401 - two are fixtures

SECRET = b"what only the service may write\n"


def npy(seed: int = 3) -> bytes:
    out = io.BytesIO()
    np.save(out, pixels(seed)[..., None] / np.float32(255))
    return out.getvalue()


# ---- a link where the reason of a refusal is written ----------------------------------------------------------


def attack_overwrite(place: Path, victim: Path) -> bytes:
    """Links where the service will write and remove; returns what the victim's file holds afterwards."""
    (place / "rejected").mkdir()
    for name in ("bad.xyz", "bad.xyz.reason"):
        (place / "rejected" / name).symlink_to(victim)
    (place / "bad.xyz").write_bytes(b"x")
    for found in spool.dropped(place):
        spool.reject(found, "refused")
    return victim.read_bytes()


def test_overwrite_a_link_in_the_spool_changes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(SECRET)
    (tmp_path / "spool").mkdir()
    assert attack_overwrite(tmp_path / "spool", tmp_path / "victim") == SECRET
    assert not (tmp_path / "spool/bad.xyz").exists()


def test_control_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_before(found: spool.Dropped, why: str) -> None:
        aside = found.spool / spool.REJECTED
        (aside / (found.name + spool.REASON)).write_text(why)
        found.path.replace(aside / found.name)

    monkeypatch.setattr(spool, "reject", as_before)
    (tmp_path / "victim").write_bytes(SECRET)
    (tmp_path / "spool").mkdir()
    assert attack_overwrite(tmp_path / "spool", tmp_path / "victim") == b"refused"


def attack_rejected_elsewhere(place: Path, victim: Path) -> list[str]:
    """``rejected`` is a link to another folder; returns what lies in that afterwards."""
    (place / "rejected").symlink_to(victim)
    (place / "bad.xyz").write_bytes(b"x")
    for found in spool.dropped(place):
        try:
            spool.reject(found, "refused")
        except FlTinyError:
            continue
    return sorted(path.name for path in victim.iterdir())


def test_rejected_elsewhere_a_folder_that_is_a_link_is_not_written_in(tmp_path: Path) -> None:
    for name in ("spool", "victim"):
        (tmp_path / name).mkdir()
    assert attack_rejected_elsewhere(tmp_path / "spool", tmp_path / "victim") == []
    assert (tmp_path / "spool/rejected/bad.xyz").exists() and not (tmp_path / "spool/rejected").is_symlink()


def test_control_rejected_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    monkeypatch.setattr(spool, "_is_folder", lambda place, name: name == "rejected")
    for name in ("spool", "victim"):
        (tmp_path / name).mkdir()
    assert attack_rejected_elsewhere(tmp_path / "spool", tmp_path / "victim") == ["bad.xyz", "bad.xyz.reason"]


# ---- a file that is exchanged after it was looked at ----------------------------------------------------------


def attack_exchange(place: Path, victim: Path) -> bytes:
    """The file that the service looked at becomes a link; returns what is read under its name."""
    path = place / "a.csv"
    path.write_bytes(b"x,label\n")
    (found,) = spool.dropped(place)
    path.unlink()
    path.symlink_to(victim)
    try:
        with spool.opened(found.spool, found.folder, found.name, found.once) as handle:
            return os.read(handle, 100)
    except DataError:
        return b""


def test_exchange_a_file_that_became_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(SECRET)
    (tmp_path / "spool").mkdir()
    assert attack_exchange(tmp_path / "spool", tmp_path / "victim") == b""


def test_control_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    monkeypatch.setattr(spool, "_once", lambda about: "any")
    (tmp_path / "victim").write_bytes(SECRET)
    (tmp_path / "spool").mkdir()
    assert attack_exchange(tmp_path / "spool", tmp_path / "victim") == SECRET


# ---- whatever has a name in the spool -------------------------------------------------------------------------


def attack_names(victim: Board) -> None:
    """Links, pipes, folders, second names, names that are no text, folders named like files, in every place."""
    (victim.spool / "kind1").mkdir()
    (victim.spool / "rejected").mkdir()
    for place in (victim.spool / "rejected", victim.spool / "kind1", victim.spool):
        os.mkfifo(place / "a.png")
        (place / "b.png").symlink_to(victim.dir / "secret/psk")
        os.link(victim.dir / "fl-tiny.toml", place / "c.csv")
        (place / "d.png").mkdir()
        (place / "d.png/inside").touch()
        (place / "e.png").symlink_to(place)
        Path(os.fsdecode(os.fsencode(place) + b"/\xff\x1b[2J\n.png")).write_bytes(b"x")
        (place / "f.png.label").symlink_to(victim.dir / "secret/psk")
        (place / "f.png").write_bytes(b"x")
        (place / "loop").symlink_to("loop")


def test_names_of_any_kind_stop_nothing_and_reach_nothing(board: Board) -> None:  # noqa: F811
    secret = (board.dir / "secret/psk").read_bytes()
    service = board.serve()
    settings = (board.dir / "fl-tiny.toml").read_bytes()
    attack_names(board)
    board.drop("kind2/zz.npy", npy())
    service.event("sample", added=1)
    until(lambda: not (board.spool / "kind1/loop").is_symlink(), "end of the last of them")
    board.drop("kind2/again.npy", npy(4))
    service.event("sample", added=1)
    assert (board.dir / "secret/psk").read_bytes() == secret
    assert (board.dir / "fl-tiny.toml").read_bytes() == settings
    assert all("\x1b" not in line for line in service.log)
    reasons = b"".join(path.read_bytes() for path in (board.spool / "rejected").glob("*.reason") if path.is_file())
    assert secret.strip() not in reasons


# ---- a file that the process dies of --------------------------------------------------------------------------


DEADLY = (
    "import asyncio, os, signal, sys; from pathlib import Path\n"
    "from fl_tiny.board import Source\nfrom fl_tiny.device.sources import ends, inference, service\n"
    "if sys.argv[4] == 'before': ends.Ends.__contains__ = lambda self, once: False\n"
    "ask = inference.Inference.ask\n"
    "def deadly(self, header, body=b''):\n"
    "    if header.get('name') == 'deadly.npy': os.kill(os.getpid(), signal.SIGKILL)\n"
    "    return ask(self, header, body)\n"
    "inference.Inference.ask = deadly\n"
    "s = Source(spool=sys.argv[2], socket=sys.argv[3], every=0.05)\n"
    "asyncio.run(asyncio.wait_for(service.Service(Path(sys.argv[1]), s, lambda *a: None).run(), 10))\n"
)


def attack_restart_loop(victim: Board, how: str, starts: int) -> int:
    """A file that takes the whole service with it, as the OOM killer may; returns how many of its starts died."""
    victim.drop("kind1/deadly.npy", npy())
    victim.drop("kind1/good.npy", npy())
    died = 0
    for _ in range(starts):
        words = [sys.executable, "-c", DEADLY, victim.dir, victim.spool, victim.socket, how]
        done = subprocess.run(words, check=False, capture_output=True, timeout=60)
        died += done.returncode == -9
    return died


def test_restart_loop_a_file_that_kills_the_service_does_so_once(board: Board) -> None:  # noqa: F811
    assert attack_restart_loop(board, "now", 3) == 1
    assert board.stats()["samples"] == 1, "the other file"
    assert (board.spool / "rejected/deadly.npy").exists()
    assert ends.DIED in (board.spool / "rejected/deadly.npy.reason").read_text()


def test_control_restart_loop(board: Board) -> None:  # noqa: F811
    assert attack_restart_loop(board, "before", 3) == 3
    assert board.stats()["samples"] == 0


# ---- bundles --------------------------------------------------------------------------------------------------


def attack_bundles(folder: Path, victim: Path) -> None:
    """Everything but a bundle, under a bundle's name."""
    folder.mkdir(parents=True)
    (folder / "a.raucb/deep").mkdir(parents=True)
    (folder / "b.raucb").symlink_to(victim)
    os.mkfifo(folder / "c.raucb")
    os.link(victim, folder / "d.raucb")
    (folder / "e.raucb").symlink_to(folder)
    (folder / "f.raucb").symlink_to("nowhere")


def fetched(root: Path) -> Iterator[Path | str | None]:
    """What root's helper takes, each time that systemd starts it, until no bundle's name is there."""
    while list((root / "dev/update").glob("*.raucb")):
        try:
            yield update._fetched(Machine(root), root / "dev")
        except DataError as fault:
            yield str(fault)


def test_bundles_of_any_kind_neither_stick_the_helper_nor_hide_a_real_one(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(SECRET)
    Machine(tmp_path).work.mkdir(parents=True)
    attack_bundles(tmp_path / "dev/update", tmp_path / "victim")
    runs = list(fetched(tmp_path))
    assert len(runs) == 1 and "a.raucb is no plain file" in str(runs[0])
    assert (tmp_path / "victim").read_bytes() == SECRET and list(Machine(tmp_path).work.iterdir()) == []
    (tmp_path / "dev/update/0.raucb").mkdir()
    (tmp_path / "dev/update/1.raucb").write_bytes(b"bundle")
    (taken,) = fetched(tmp_path)
    assert isinstance(taken, Path) and taken.read_bytes() == b"bundle" and taken.parent == Machine(tmp_path).work


def test_control_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was moved into root's folder first, and looked at then: a folder could not be removed from there."""

    def as_before(machine: Machine, directory: Path) -> Path:
        first = min((directory / "update").glob("*.raucb"))
        taken = machine.work / first.name
        first.replace(taken)
        if not stat.S_ISREG(taken.lstat().st_mode):
            taken.unlink()
            raise DataError(f"{first} is no plain file")
        return taken

    monkeypatch.setattr(update, "_fetched", as_before)
    (tmp_path / "victim").write_bytes(SECRET)
    Machine(tmp_path).work.mkdir(parents=True)
    attack_bundles(tmp_path / "dev/update", tmp_path / "victim")
    with pytest.raises(IsADirectoryError):
        list(fetched(tmp_path))


def test_a_folder_of_updates_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.raucb").write_bytes(SECRET)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/update").symlink_to(tmp_path / "elsewhere")
    assert update._fetched(Machine(tmp_path), tmp_path / "dev") is None
    assert (tmp_path / "elsewhere/a.raucb").read_bytes() == SECRET


# ---- a release on its way -------------------------------------------------------------------------------------


class Pieces:
    """A gateway's pieces, as ``Link`` gives them."""

    async def piece(self, digest: bytes, number: int, size: int) -> bytes:
        return bytes(size)


def attack_part(root: Path, victim: Path) -> bytes:
    """The name of a release on its way is a second name of another file; returns what that holds afterwards."""
    whole = Bundle(b"d" * 32, 100, "3")
    (root / "etc/rauc").mkdir(parents=True)
    (root / "etc/rauc/system.conf").touch()
    (root / "etc/fl-tiny-release").write_text("COMPATIBLE=fl-tiny-a\nRELEASE=2\n")
    fetch = bundle.Fetch(root, Machine(root), lambda event, facts: None)
    fetch.offered(whole)
    assert fetch.is_on
    (root / "update").mkdir()
    os.link(victim, root / f"update/{whole.digest[:8].hex()}.part")
    asyncio.run(fetch.pieces(Pieces(), 1.0))  # type: ignore[arg-type]
    return victim.read_bytes()


def test_part_a_second_name_of_a_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(SECRET)
    assert attack_part(tmp_path, tmp_path / "victim") == SECRET


def test_control_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "is_plain", lambda state: True)
    (tmp_path / "victim").write_bytes(SECRET)
    assert attack_part(tmp_path, tmp_path / "victim") != SECRET
