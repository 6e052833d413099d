# SPDX-License-Identifier: Apache-2.0
"""Another release of a board's system, by a real RAUC: installed, refused, confirmed, left; on slots that are files."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_tiny import statedir
from fl_tiny.device.bootfiles import BootFiles
from fl_tiny.device.bootstate import Phase
from fl_tiny.device.bundle import Fetch
from fl_tiny.device.confirm import Patience, Signs, Verdict, confirm, verdict
from fl_tiny.device.download import download
from fl_tiny.device.machine import Machine, Record, note_reached
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault
from fl_tiny.protocol.release import Bundle, Release, rank_of, read_release

from . import raucs
from .raucs import BOARD, Board
from .test_boot import start

with_rauc = pytest.mark.skipif(bool(raucs.missing()), reason=f"no RAUC here: {raucs.missing()}")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raucs.make_keys(tmp_path_factory.mktemp("keys") / "fleet")


@pytest.fixture
def board(tmp_path: Path, keys: Path) -> Iterator[Board]:
    made = raucs.make_board(tmp_path, keys)
    with raucs.serving(made):
        yield made


def phase(board: Board) -> Phase:
    return BootFiles(board.root / "boot", Machine(board.root).booted()).phase()


@with_rauc
def test_a_bundle_is_installed_tried_and_confirmed(board: Board, keys: Path, tmp_path: Path) -> None:
    bundle = raucs.make_bundle(tmp_path, keys, "2.0.1")
    done = board.run("update", bundle, "--json")
    assert json.loads(done.stdout) == {"release": "2.0.1", "board": BOARD, "slot": "B"}
    assert "100 % Installing done." in done.stderr
    root = (tmp_path / f"content-2.0.1-{BOARD}-plain/root.squashfs").read_bytes()
    assert board.slot_b.read_bytes().startswith(root)
    assert bundle.exists(), "a file of the user's stays"
    assert start(board.root / "boot") == "B"
    board.runs("B", "2.0.1")
    refused = board.run("update", bundle, code=78)
    assert "is being tried" in refused.stderr
    board.command("rauc", "install", bundle, code=1)  # not by RAUC itself either
    note_reached(tmp_path, Machine(board.root))
    assert board.run("confirm", tmp_path).stdout == "confirmed\n"
    assert phase(board) is Phase.SETTLED
    assert start(board.root / "boot") == "B"


@with_rauc
def test_what_is_older_foreign_or_damaged_is_refused_and_the_next_start_is_as_before(
    board: Board, keys: Path, tmp_path: Path
) -> None:
    foreign = raucs.make_keys(tmp_path / "foreign")
    damaged = raucs.make_bundle(tmp_path, keys, "4")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    (tmp_path / "text.raucb").write_text("not a bundle")
    cases = {
        raucs.make_bundle(tmp_path, keys, "1.9"): "older than 2",
        raucs.make_bundle(tmp_path, keys, "3", board="fl-tiny-other"): "a bundle for fl-tiny-other",
        raucs.make_bundle(tmp_path, foreign, "3"): "signature",
        damaged: "signature",
        tmp_path / "text.raucb": "bundle format",
        tmp_path / "absent.raucb": "No such file",
    }
    for bundle, why in cases.items():
        said = board.run("update", bundle, code=65).stderr
        assert why in said, (bundle, said)
        assert why in (Machine(board.root).record() or Record("", "", "")).why
    assert phase(board) is Phase.SETTLED
    assert start(board.root / "boot") == "A"


@with_rauc
def test_rauc_alone_refuses_an_older_release_and_one_that_does_not_say_which(
    board: Board, keys: Path, tmp_path: Path
) -> None:
    """Whoever may run rauc cannot go back behind a release either: its pre-install handler is ours."""
    for bundle in (
        raucs.make_bundle(tmp_path, keys, "1.9"),
        raucs.make_bundle(tmp_path, keys, "3", names=False),
    ):
        said = board.command("rauc", "install", bundle, code=1)
        assert "Pre-install handler error" in said.stdout + said.stderr
    assert board.slot_b.read_bytes() == bytes(1 << 20), "nothing was written"
    assert start(board.root / "boot") == "A"


@with_rauc
def test_what_a_daemon_fetched_is_taken_and_a_refusal_is_noted_by_its_name(
    board: Board, keys: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dev/update"
    folder.mkdir(parents=True)
    assert board.run("update", tmp_path / "dev").stdout == "no bundle has been fetched\n"
    shutil.copy(raucs.make_bundle(tmp_path, keys, "1"), folder / "abcd.raucb")
    board.run("update", tmp_path / "dev", code=65)
    record = Machine(board.root).record()
    assert record is not None
    assert (record.name, record.state, record.code) == ("abcd", "refused", 17)
    assert not list(folder.iterdir()), "the path unit would start again and again"
    shutil.copy(raucs.make_bundle(tmp_path, keys, "3"), folder / "ef.raucb")
    board.run("update", tmp_path / "dev")
    assert (Machine(board.root).record() or record).name == "ef"
    left = [path.name for path in (board.root / "var/lib/fl-tiny/update").iterdir()]
    assert sorted(left) == ["rauc.status", "update.json"]


@with_rauc
def test_no_certificate_date_matters_and_a_flipped_byte_is_seen(keys: Path, tmp_path: Path) -> None:
    """A verity bundle, as boards take them; mounting one needs a device mapper, checking it does not."""
    bundle = raucs.make_bundle(tmp_path, keys, "3", form="verity")
    conf = tmp_path / "rauc.conf"
    keyring = f"[keyring]\npath={keys}/update-ca.pem\nuse-bundle-signing-time=true\n"
    conf.write_text(f"[system]\ncompatible={BOARD}\nbootloader=noop\nbundle-formats=verity\n{keyring}")
    extract = ["rauc", "--conf", conf, "extract", bundle]
    if shutil.which("faketime"):
        for when in ("1970-01-01 00:00:30", "2099-01-01 00:00:30"):
            out = tmp_path / when[:4]
            subprocess.run(["faketime", "-f", when, *extract, out], check=True, timeout=60, capture_output=True)
            assert (out / "root.squashfs").exists()
    data = bytearray(bundle.read_bytes())
    data[len(data) // 3] ^= 1
    bundle.write_bytes(data)
    failed = subprocess.run([*extract, tmp_path / "out"], check=False, timeout=60, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "verity" in failed.stderr


def test_without_slots_or_rauc_a_command_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no slots"):
        from fl_tiny.device.update import update

        update(Machine(tmp_path), tmp_path, "b.raucb", lambda what, percent: None)


# ---- a try's end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signs", "had_gateway", "expected"),
    [
        (Signs(True, 1, 0), True, Verdict.STAY),
        (Signs(False, 899, 899), True, Verdict.WAIT),
        (Signs(False, 900, 900), True, Verdict.LEAVE),
        (Signs(False, 299, 299), False, Verdict.WAIT),
        (Signs(False, 300, 300), False, Verdict.STAY),
        (Signs(False, 900, 20), False, Verdict.LEAVE),
        (Signs(True, 1, 0), False, Verdict.STAY),
    ],
)
def test_a_release_stays_by_its_gateway_or_offline_by_health(
    signs: Signs, had_gateway: bool, expected: Verdict
) -> None:
    assert verdict(signs, had_gateway, Patience(900, 300)) is expected


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def tried(folder: Path, keys: Path, *, reached: bool) -> Board:
    """A board in the first start of release 3 in slot B."""
    board = raucs.make_board(folder, keys)
    Machine(board.root).keep(Record("ab", "3", "installed", reached))
    BootFiles(board.root / "boot", "A").stage("B")
    assert start(board.root / "boot") == "B"
    board.runs("B", "3")
    return board


@with_rauc
def test_a_release_without_its_gateway_is_left_and_the_reason_kept(tmp_path: Path, keys: Path) -> None:
    board, clock, reboots = tried(tmp_path, keys, reached=True), Clock(), []
    machine = Machine(board.root)
    watch = functools.partial(confirm, machine, tmp_path, Patience(900, 300), now=lambda: clock.now, sleep=clock.sleep)
    assert watch(reboot=lambda: reboots.append(clock.now)) == "left"
    assert reboots == [900]
    assert start(board.root / "boot") == "A"
    board.runs("A", "2")
    assert watch() == "fell back"
    assert machine.record() == Record("ab", "3", "fell back", True, 21, "it did not reach its gateway within 900 s")
    assert watch() == "settled"
    assert start(board.root / "boot") == "A"


@with_rauc
def test_an_update_of_a_board_that_is_offline_stays_when_it_is_healthy(tmp_path: Path, keys: Path) -> None:
    board, clock = tried(tmp_path, keys, reached=False), Clock()
    watch = functools.partial(confirm, Machine(board.root), tmp_path, now=lambda: clock.now, sleep=clock.sleep)
    assert watch(Patience(900, 300), reboot=lambda: None) == "confirmed"
    assert 300 <= clock.now < 310


@with_rauc
def test_offline_a_device_that_does_not_run_is_not_healthy(tmp_path: Path, keys: Path) -> None:
    board, clock = tried(tmp_path, keys, reached=False), Clock()
    (tmp_path / statedir.DATABASE).touch()  # enrolled, but no daemon holds the lock
    watch = functools.partial(confirm, Machine(board.root), tmp_path, now=lambda: clock.now, sleep=clock.sleep)
    assert watch(Patience(900, 300), reboot=lambda: None) == "left"
    assert not statedir.is_running(tmp_path)
    with statedir.locked(tmp_path):
        assert statedir.is_running(tmp_path)


@with_rauc
def test_a_release_that_never_came_up_is_told_from_one_that_did(tmp_path: Path, keys: Path) -> None:
    board = tried(tmp_path, keys, reached=True)
    assert start(board.root / "boot") == "A"
    board.runs("A", "2")
    assert board.run("confirm", tmp_path).stdout == "fell back\n"
    record = Machine(board.root).record()
    assert record is not None
    assert record.why == "it did not come up"


@with_rauc
def test_a_cut_between_the_slot_and_its_note_is_put_right(tmp_path: Path, keys: Path) -> None:
    board = tried(tmp_path, keys, reached=True)
    BootFiles(board.root / "boot", "B").confirm()  # and then the power went
    assert board.run("confirm", tmp_path).stdout == "confirmed\n"


# ---- releases and addresses ---------------------------------------------------------------------------------


def test_a_release_is_fetched_again_after_its_installation_was_cut_alone(tmp_path: Path, keys: Path) -> None:
    machine = Machine(raucs.make_board(tmp_path, keys).root)
    bundle = Bundle(b"d" * 32, 1000, "3")
    name = bundle.digest[:8].hex()
    (tmp_path / "update").mkdir()
    (tmp_path / "update/0123456789abcdef.part").write_bytes(b"of a release that is offered no more")
    (tmp_path / "update/folder.part").mkdir()  # by nobody who is honest
    fetch = Fetch(tmp_path, machine, lambda event, facts: None)
    machine.work.mkdir(parents=True, exist_ok=True)
    (machine.work / f"{name}.raucb").write_bytes(b"whole")
    fetch.offered(bundle)
    assert not fetch.is_on
    assert [path.name for path in (tmp_path / "update").iterdir()] == ["folder.part"]
    assert confirm(machine, tmp_path, Patience()) == "settled"
    fetch.offered(bundle)
    assert fetch.is_on


def test_releases_are_compared_as_numbers() -> None:
    ordered = ["1", "1.0.1", "1.2", "1.10", "2026.9.30", "2026.11.24", "2026.11.24.1"]
    assert sorted(ordered, key=rank_of) == ordered
    assert sorted(ordered) != ordered, "as text they are not"
    assert rank_of("1.0") == rank_of("1")
    for text in ("", "1.", ".1", "1.a", "1-2", "v1", "1..2", "1" * 10, "1.2.3.4.5.6.7", "٣"):
        with pytest.raises(DataError):
            Release("b", text)
    for text in ("RELEASE=1", "COMPATIBLE=a b\nRELEASE=1", ""):
        with pytest.raises(DataError):
            read_release(text)


class Flaky(http.server.BaseHTTPRequestHandler):
    """A server that cuts the first answer off, and knows ranges."""

    body, tag, cut, ranges = b"", '"1"', [True], list[str]()

    def do_GET(self) -> None:
        first, asked = 0, self.headers.get("Range")
        self.ranges.append(asked or "")
        if asked and self.headers.get("If-Range") == self.tag:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(self.body) - first))
        self.send_header("ETag", self.tag)
        self.end_headers()
        rest = self.body[first:]
        self.wfile.write(rest[: len(rest) // 2] if self.cut.pop() else rest)
        self.cut.append(False)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("changed", [False, True])
def test_a_download_goes_on_where_it_ended_unless_the_file_is_another(tmp_path: Path, changed: bool) -> None:
    body, other = bytes(range(256)) * 1000, bytes(255000)
    kind = type("Once", (Flaky,), {"body": body, "cut": [True], "ranges": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url, path = f"http://127.0.0.1:{server.server_port}/b", tmp_path / "b"
    try:
        with pytest.raises(EnvironmentFault, match="ended early"):
            download(url, path, 1 << 20, lambda done, total: None)
        assert not path.exists()
        if changed:
            kind.body, kind.tag = other, '"2"'
        download(url, path, 1 << 20, lambda done, total: None)
        assert path.read_bytes() == (other if changed else body)
        assert kind.ranges == ["", f"bytes={len(body) // 2}-"]
        with pytest.raises(DataError, match="at most 1000"):
            download(url, path, 1000, lambda done, total: None)
        with pytest.raises(ConfigError):
            download("file:///etc/passwd", path, 1000, lambda done, total: None)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(EnvironmentFault):
        download(url, path, 1000, lambda done, total: None)
