# SPDX-License-Identifier: Apache-2.0
"""Files that programs drop become samples once each, and what is none is put aside with the reason."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from e2e.fleet import cli, stop

from fl_tiny.device.sources import spool

from .conftest import NAMES, Board, pixels, until

Image = pytest.importorskip("PIL.Image", reason="SKIPPED: pictures need Pillow, the extra [data]")


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(seed)).save(out, "PNG")
    return out.getvalue()


def left(board: Board) -> list[str]:
    return sorted(str(p.relative_to(board.spool)) for p in board.spool.rglob("*") if p.is_file())


def test_files_of_every_kind_become_the_samples_that_they_are(board: Board) -> None:
    service = board.serve()
    board.drop("kind3/a.png", png(1))
    service.event("sample", added=1)
    board.drop("b.png.label", b"kind5\n")
    board.drop("b.png", png(2))
    service.event("sample", added=1)
    out = io.BytesIO()
    np.save(out, pixels(3)[..., None] / np.float32(255))
    board.drop("7/c.npy".replace("7", NAMES[7]), out.getvalue())
    service.event("sample", added=1)
    out = io.BytesIO()
    np.savez(out, x=np.stack([pixels(4), pixels(5)])[..., None] / np.float32(255), y=[0, 9])
    board.drop("d.npz", out.getvalue())
    service.event("sample", added=2)
    assert board.stats()["classes"] == {"0": 1, "3": 1, "5": 1, "7": 1, "9": 1}
    until(lambda: left(board) == [], "empty spool")
    assert stop(service) == 0 and not board.socket.exists()
    direct = board.root / "direct.npz"
    np.savez(direct, x=np.stack([pixels(1), pixels(2)])[..., None] / np.float32(255), y=[3, 5])
    found = cli("samples", "add", board.dir, "--data", direct)
    assert (found["added"], found["known"]) == (0, 2), "by the fleet's preprocessing"


def test_what_is_no_sample_is_put_aside_with_the_reason(board: Board) -> None:
    service = board.serve()
    secret = board.dir / "secret/psk"
    for name, data, word in (
        ("kind1/a.png", b"no picture", "no picture"),
        ("nobody.png", png(), "nobody says its label"),
        ("coat/b.png", png(), "no class of the model"),
        ("kind1/c.xyz", b"", "no kind that fl-tiny reads"),
        ("kind1/d.npy", b"\x93NUMPY", ".npy"),
        ("kind1/e.npy", b"\x80\x04K\x01.", ".npy"),
    ):
        board.drop(name, data)
        found = service.event("rejected", file=name.rsplit("/", 1)[-1])
        assert word in found["why"]
        assert word in (board.spool / "rejected" / f"{found['file']}.reason").read_text()
    (board.spool / "link.csv").symlink_to(secret)
    assert "no plain file" in service.event("rejected", file="link.csv")["why"]
    assert secret.exists()
    (board.spool / "large.npz").touch()
    os.truncate(board.spool / "large.npz", spool.MAX_BYTES + 1)
    assert "longer" in service.event("rejected", file="large.npz")["why"]
    board.drop("kind1/good.png", png())
    service.event("sample", added=1)
    assert board.stats()["samples"] == 1
    assert len(left(board)) == 16, "eight files and a reason each"


def test_a_file_that_the_child_dies_of_is_put_aside_and_the_service_goes_on(board: Board) -> None:
    service = board.serve()
    board.drop("kind1/a.png", png())
    service.event("sample")
    os.kill(child(service.process.pid), signal.SIGKILL)  # by the kernel, while it had nothing to do
    time.sleep(0.2)
    board.drop("kind1/b.png", png(1))
    service.event("sample")
    deadly = child(service.process.pid)
    os.kill(deadly, signal.SIGSTOP)
    board.drop("kind1/c.png", png(2))
    time.sleep(0.3)
    os.kill(deadly, signal.SIGSEGV)
    os.kill(deadly, signal.SIGCONT)
    assert "died of it (signal 11)" in service.event("rejected", file="c.png")["why"]
    board.drop("kind1/d.png", png(3))
    service.event("sample")
    assert board.stats()["samples"] == 3


def test_files_wait_while_the_model_cannot_be_run(board: Board) -> None:
    base = board.dir / "model/base.tflite"
    good = base.read_bytes()
    base.write_bytes(good[:100])
    service = board.serve()
    board.drop("kind1/a.png", png())
    until(lambda: any("spool waits" in line for line in service.log), "word of it")
    assert left(board) == ["kind1/a.png"], "it is no fault of the file"
    base.write_bytes(good)
    service.event("sample", added=1)


def child(pid: int) -> int:
    """The service's child, whichever of its threads has started it."""
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    (found,) = [int(number) for numbers in lists for number in numbers]
    return found


def test_the_spool_stays_bounded_in_what_is_put_aside(tmp_path: Path) -> None:
    for n in range(spool.MAX_REJECTED + 20):
        (tmp_path / f"{n:03}.x").touch()
        spool.reject(tmp_path, spool.Dropped(tmp_path / f"{n:03}.x", None, ""), "why")
    names = {p.name for p in (tmp_path / "rejected").iterdir()}
    assert len(names) == 2 * spool.MAX_REJECTED and "119.x.reason" in names and "000.x" not in names


def test_a_file_is_learnt_once_though_its_removal_was_cut(board: Board) -> None:
    """Killed between the transaction and the removal, twice; the control takes a file of other bytes."""
    path = board.drop("kind2/a.png", png())
    code = (
        "import sys, asyncio, os; from pathlib import Path; from fl_tiny.device.sources import spool, service\n"
        "from fl_tiny.board import Source\nspool.remove = lambda found: os._exit(9)\n"
        "s = Source(spool=sys.argv[2], socket=sys.argv[3], every=0.05)\n"
        "asyncio.run(service.Service(Path(sys.argv[1]), s, lambda *a: None).run())"
    )
    for _ in range(2):
        words = [sys.executable, "-c", code, board.dir, board.spool, board.socket]
        done = subprocess.run(words, check=False, capture_output=True, timeout=60)
        assert done.returncode == 9, done.stderr
        assert path.exists() and board.stats()["samples"] == 1
    service = board.serve()
    until(lambda: left(board) == [], "empty spool")
    assert board.stats()["samples"] == 1
    board.drop("kind2/b.png", png(9))
    service.event("sample", added=1)
    board.drop("kind2/c.png", png(9))
    service.event("sample", added=0, known=1)
    assert board.stats()["samples"] == 2


def test_a_second_service_and_one_without_a_source_do_not_run(board: Board) -> None:
    assert cli("samples", "serve", board.dir) == {"event": "idle"}
    board.serve()
    assert "in use" in cli("samples", "serve", board.dir, code=78)
