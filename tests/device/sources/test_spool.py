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
        spool.reject(spool.Dropped(tmp_path, "", f"{n:03}.x", None, ""), "why")
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


def test_a_picture_that_swells_is_refused_before_the_kernel_ends_a_process(board: Board) -> None:
    service = board.serve()
    board.drop("kind1/a.png", png())
    service.event("sample", added=1)
    before = child(service.process.pid)
    out = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # it has to be in memory twice, 192 MB
    Image.new("RGBA", (6000, 4000)).save(out, "PNG", exif=turned)
    assert len(out.getvalue()) < 200_000
    board.drop("kind1/bomb.png", out.getvalue())
    assert "more memory" in service.event("rejected", file="bomb.png")["why"]
    out = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(out, "JPEG")  # what a phone takes
    board.drop("kind1/phone.jpg", out.getvalue())
    service.event("sample", added=1)
    assert child(service.process.pid) == before, "the same child"


def test_a_recording_and_a_spreadsheets_table_are_refused_by_name_where_they_do_not_fit(board: Board) -> None:
    service = board.serve()
    board.drop("d.csv", "x;y;label\n1,5;2;0\n".encode("utf-16"))
    assert "d.csv has 2 columns of numbers" in service.event("rejected", file="d.csv")["why"]
    board.drop("kind1/a.flac", b"fLaC")
    assert service.event("rejected", file="a.flac")["why"]


def test_numbers_that_cannot_be_right_are_warned_of_once(board: Board) -> None:
    service = board.serve()
    for n in range(2):
        out = io.BytesIO()
        np.savez(out, x=pixels(n)[None, ..., None].astype(np.float32), y=[n])  # 0 to 255, the model takes 0 to 1
        board.drop(f"{n}.npz", out.getvalue())
        assert "cut off" in service.event("sample", added=1)["doubt"]
    board.drop("kind1/a.png", png())
    assert "doubt" not in service.event("sample", added=1)
    stop(service)
    assert len([line for line in service.log if "samples may be wrong" in line]) == 1


def test_a_file_that_can_be_neither_learnt_nor_put_aside_is_tried_once_and_stops_no_other(board: Board) -> None:
    (board.spool / "rejected").mkdir(parents=True)
    (board.spool / "kind1").mkdir()
    path = board.drop("kind1/bad.png", b"no picture")
    path.chmod(0o444)
    subprocess.run(["chattr", "+i", path], check=False, capture_output=True)
    if os.access(path, os.W_OK):
        pytest.skip("SKIPPED: this filesystem keeps no file from its removal (chattr +i)")
    try:
        service = board.serve()
        until(lambda: any("file stays" in line for line in service.log), "word of it")
        board.drop("kind2/good.png", png())
        service.event("sample", added=1)
        time.sleep(0.5)
        assert len([line for line in service.log if "bad.png" in line]) == 1
        stop(service)
        again = board.serve()
        board.drop("kind2/other.png", png(1))
        again.event("sample", added=1)
        assert not any("bad.png" in line for line in again.log), "also across a restart"
    finally:
        subprocess.run(["chattr", "-i", path], check=False)


def test_an_import_lists_all_faults_or_goes_on_without_them(board: Board) -> None:
    folder = board.root / "pictures"
    for n in range(40):
        (folder / f"kind{n % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"kind{n % 2}/{n:02}.png").write_bytes(b"text" if n % 10 == 3 else png(n))
    (folder / "kind0/Thumbs.db").touch()
    (folder / "__MACOSX").mkdir()
    (folder / "kind1/notes.txt").touch()
    said = cli("samples", "add", board.dir, "--images", folder, code=65)
    assert "5 of 41 files cannot be used" in said and "kind1/03.png" in said and "notes.txt" in said
    assert "--skip-bad" in said and len(said) <= 400 and board.stats()["samples"] == 0
    words = ("samples", "add", board.dir, "--images", folder, "--skip-bad")
    assert cli(*words) == {"added": 36, "known": 0, "relabelled": 0, "samples": 36, "skipped": 5}
    found = cli("predict", board.dir, "--images", folder, "--skip-bad")
    assert len(found["labels"]) == len(found["files"]) == 36 and found["skipped"] == 5
    assert "03.png" not in " ".join(found["files"])
