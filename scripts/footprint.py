# SPDX-License-Identifier: Apache-2.0
"""What fl-tiny takes on a board, a row for each way to install it: disk, memory, MiB-hours a day. JSON, and a table.

Each way is installed as the tests of packaging do it, on this machine's processor, and takes part in two rounds of a
real gateway on loopback: one as a resident service, one as its timer starts it. Resident memory is read from /proc
every 5 ms. A day has a round an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import bench  # noqa: E402 - a script, not a package

from tests.e2e.fleet import Fleet, cli  # noqa: E402
from tests.packaging import alpine, containers, debian, musl_python, snaps  # noqa: E402

HEAD, SAMPLES = "1280x10", 500
STATE = "/var/lib/fl-tiny/device"
IMAGE = "localhost/fl-tiny-device:0.1.0"
PAGE = ROOT / "docs/install.md"
BEGIN, END = "<!-- scripts/footprint -->\n", "<!-- end of it -->\n"
MIB, MB = 1 << 20, 1e6
EVERY_S = 0.005
SETTLE_S = 3.0
ROUNDS_A_DAY = 24
PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Board:
    """A device installed in one way.

    directory: DIR as its commands name it.   command: what to start for some words of ``fl-tiny``.
    own, whole: bytes on the disk of fl-tiny's own files, and with what they need and a plain system lacks.
    """

    directory: str
    command: Callable[..., list[str]]
    put: Callable[[Path], str]  # a file of this machine: its path on the board
    own: int
    whole: int
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(self, *words: object) -> str:
        """What a command prints."""
        done = subprocess.run(
            self.command(*words), env=self.env, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == 0, f"{words}: exit {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout


@dataclass(frozen=True, slots=True)
class Row:
    """Measured of one way. Sizes in MB, memory in MiB, MiB-hours a day with a round an hour."""

    way: str
    runtime: str
    own_mb: float
    whole_mb: float
    idle_mib: float
    training_mib: float
    training_s: float
    resident_mib_h: float
    timer_s: float
    timer_mib_h: float


# ---- ways ---------------------------------------------------------------------------------------------------


@contextmanager
def pip(place: Path) -> Iterator[Board]:
    """A virtual environment with the extra ``tflite``."""
    base = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base], check=True)
    site = next(base.glob("lib/python3*/site-packages"))
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", site, f"{ROOT}[tflite]"]
    subprocess.run(words, check=True, timeout=600)
    run = [str(base / "bin/python"), "-m", "fl_tiny"]
    yield Board(
        str(place / "device"), lambda *w: [*run, *map(str, w)], str, size(site / "fl_tiny"), size(site), clean(place)
    )


@contextmanager
def deb(place: Path, suite: str = "bookworm") -> Iterator[Board]:
    """Debian's packages in a root of Debian, with tflite-runtime where there is one."""
    debian.build_debs()
    root = debian.make_root(place / "root", suite)
    names = ["fl-tiny"]
    debian.install(root, "fl-tiny")
    if suite == "bookworm":
        debian.install(root, "fl-tiny-tflite", arch="amd64")
        names.append("fl-tiny-tflite")
    own, whole = closure(root, names)
    yield Board(STATE, lambda *w: debian.command(root, "fl-tiny", *w), put_into(root), own, whole)


@contextmanager
def apk(place: Path) -> Iterator[Board]:
    """Alpine's packages on our CPython for musl, whose own size is not counted: Alpine has another."""
    root = musl_python.root(place / "root", musl_python.repositories(place))
    alpine.apk(root, "add", "fl-tiny")
    listed = alpine.apk(root, "info", "--size", "fl-tiny", "fl-tiny-openrc", "py3-aiocoap", "py3-numpy", "py3-cbor2")
    listed += alpine.apk(root, "info", "--size", "py3-pynacl")
    sizes = {name: read_size(text) for name, text in sizes_in(listed)}
    own = sum(value for name, value in sizes.items() if name.startswith("fl-tiny"))
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    run = alpine.alpine_root.command
    yield Board(STATE, lambda *w: run(root, ["fl-tiny", *map(str, w)]), put_into(root), own, sum(sizes.values()), env)


@contextmanager
def container(place: Path) -> Iterator[Board]:
    """The device's image, confined as in deploy/container; it holds its own system."""
    containers.build("amd64")
    state, files = place / "state", place / "in"
    for folder in (state, files):
        folder.mkdir()
        os.chown(folder, 9470, 9470)
    bytes_of_image = int(containers.podman("image", "inspect", "--format={{.Size}}", IMAGE))
    mounts = ("-v", f"{state}:/var/lib/fl-tiny", "-v", f"{files}:/in:ro")

    def command(*words: object) -> list[str]:
        start = ["podman", "run", "--rm", *containers.LIMITS, *containers.HARDENED, *mounts, IMAGE]
        return ["unshare", "-m", "sh", "-c", containers.ALONE, *start, *map(str, words)]

    own = size(Path(containers.podman("image", "mount", IMAGE).strip()) / "usr/lib/python3/dist-packages/fl_tiny")
    yield Board(
        STATE,
        command,
        lambda path: f"/in/{shutil.copy(path, files) and path.name}",
        own,
        bytes_of_image,
        containers.environment(),
    )
    containers.podman("image", "unmount", IMAGE)


@contextmanager
def snap(place: Path) -> Iterator[Board]:
    """The snap's payload from its squashfs on a Python 3.12, outside confinement; the file is what lies on the disk."""
    python = snaps.python312()
    assert python, "needs a Python 3.12"
    file = snaps.pack("amd64")
    with snaps.opened(file, place / "mounted") as tree:
        payload = snaps.Payload(tree, place, python)
        payload.hook("install")
        directory = str(payload.common / "device")
        run = str(tree / "bin/fl-tiny")
        own = size(tree / "lib/python3.12/site-packages/fl_tiny")
        yield Board(directory, lambda *w: [run, *map(str, w)], str, own, file.stat().st_size, payload.env)


@contextmanager
def deb_numpy(place: Path) -> Iterator[Board]:
    """Debian 13: the same packages, the numpy kernels."""
    with deb(place, "trixie") as board:
        yield board


WAYS = {
    "pip": ("pip, tflite-runtime", pip),
    "deb": (".deb, Debian 12", deb),
    "deb-numpy": (".deb, Debian 13", deb_numpy),
    "alpine": ("Alpine .apk", apk),
    "container": ("container", container),
    "snap": ("snap", snap),
}


# ---- sizes --------------------------------------------------------------------------------------------------


def size(tree: Path) -> int:
    """Bytes of all files below a folder, bytecode aside."""
    files = (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.suffix != ".pyc")


def closure(root: Path, names: list[str]) -> tuple[int, int]:
    """Bytes that packages say they take: ``names``, and all they depend on that a plain Debian lacks."""
    form = "${Package}\t${Priority}\t${Installed-Size}\t${Depends}, ${Pre-Depends}\n"
    rows = [line.split("\t") for line in debian.inside(root, "dpkg-query", "-W", "-f", form).splitlines()]
    known = {name: (priority, int(kib) * 1024, depends) for name, priority, kib, depends in rows}
    plain = {"systemd", "systemd-sysv", "python3", "python3-minimal"}  # what every Debian board has
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name in found or name not in known or known[name][0] in ("required", "important") or name in plain:
            continue
        found.add(name)
        todo += [word.split()[0].split(":")[0] for word in known[name][2].replace("|", ",").split(",") if word.split()]
    return sum(known[name][1] for name in names), sum(known[name][1] for name in found)


def sizes_in(listed: str) -> Iterator[tuple[str, str]]:
    """(package, size) of ``apk info --size``: "NAME-VERSION installed size:" and the size on the next line."""
    lines = listed.splitlines()
    for at, line in enumerate(lines):
        if line.endswith("installed size:"):
            yield line.split()[0], lines[at + 1]


def read_size(text: str) -> int:
    """A size as apk prints it."""
    number, unit = text.split()
    return round(float(number) * {"B": 1, "KiB": 1024, "MiB": MIB}[unit])


def put_into(root: Path) -> Callable[[Path], str]:
    """A function that copies a file into a root where any user can read it."""

    def put(path: Path) -> str:
        shutil.copy(path, root / "srv" / path.name)
        return f"/srv/{path.name}"

    return put


def clean(home: Path) -> dict[str, str]:
    """An environment without this one's Python settings."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


# ---- memory -------------------------------------------------------------------------------------------------


class Watch:
    """The memory of a board's Python processes while a block runs: highest values, and MiB-seconds in all."""

    def __init__(self, directory: str) -> None:
        self._directory = directory.encode()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.agent, self.training, self.mib_s, self.seconds, self.training_s = 0.0, 0.0, 0.0, 0.0, 0.0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        pids: dict[int, bool] = {}
        looked = 0.0
        while not self._done.wait(EVERY_S):
            now = time.monotonic()
            if now - looked > 4 * EVERY_S:
                pids, looked = self.processes(), now
            rss = {pid: bench.rss_mib(pid) for pid in pids}
            total = sum(rss.values())
            self.mib_s += total * (now - before)
            self.seconds += (now - before) * (total > 0)
            training = [rss[pid] for pid, trains in pids.items() if trains]
            self.training_s += (now - before) * (max(training, default=0.0) > 0)
            self.training = max(self.training, *training, 0.0)
            self.agent = max([self.agent, *(rss[pid] for pid, trains in pids.items() if not trains)])
            before = now

    def processes(self) -> dict[int, bool]:
        """The ids of the device's processes, and whether each is the training child."""
        found = {}
        for each in Path("/proc").iterdir():
            if each.name.isdecimal():
                try:
                    words = (each / "cmdline").read_bytes().split(b"\0")
                    interpreter = (each / "exe").readlink().name.startswith("python")
                except OSError:
                    continue
                trains = b"fl_tiny.device.worker" in words
                if interpreter and self._directory in words and (trains or b"run" in words):
                    found[int(each.name)] = trains
        return found


# ---- a row --------------------------------------------------------------------------------------------------


def measure(name: str, place: Path) -> Row:
    """Install one way, enrol, and watch two rounds."""
    label, way = WAYS[name]
    fleet = Fleet(place / "fleet", bench.HEADS / f"head_{HEAD}.tflite", bench.LAYERS[HEAD])
    try:
        with way(place) as board:
            gateway = fleet.gateway("--clients", 1, "--interval", 3600, "--deadline", 120)
            code = cli("gateway", "pair", fleet.gw)["code"]
            board.run("device", "enroll", board.directory, "--code", code)
            data = bench.data(fleet.root, HEAD, SAMPLES, 1)
            data.chmod(0o644)  # the board's user is another
            board.run("samples", "add", board.directory, "--data", board.put(data))
            runtime = json.loads(board.run("samples", "stats", board.directory, "--json"))["runtime"]
            with Watch(board.directory) as first:
                service = subprocess.Popen(
                    board.command("device", "run", board.directory), env=board.env, stderr=subprocess.DEVNULL
                )
                gateway.event("round", state="published")
                until(lambda: board_is_idle(first))
                idle = max(bench.rss_mib(pid) for pid in first.processes())
                end(first, service)
            gateway.end()
            fleet.gateway("--clients", 1, "--interval", 1, "--deadline", 120)
            with Watch(board.directory) as once:
                board.run("device", "run", board.directory, "--once")
    finally:
        fleet.end()
    return Row(
        label,
        runtime,
        *(round(part / MB, 1) for part in (board.own, board.whole)),
        round(idle, 1),
        round(max(first.training, once.training), 1),
        round(first.training_s, 2),
        round(24 * idle + ROUNDS_A_DAY * first.training * first.training_s / 3600, 1),
        round(once.seconds, 1),
        round(ROUNDS_A_DAY * once.mib_s / 3600, 1),
    )


def board_is_idle(watch: Watch) -> bool:
    """Has the device been without a training child for a while?"""
    end_at = time.monotonic() + SETTLE_S
    while time.monotonic() < end_at:
        if any(watch.processes().values()):
            return False
        time.sleep(0.05)
    return True


def until(done: Callable[[], bool]) -> None:
    """Wait for ``done``."""
    end_at = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end_at, "the device does not come to rest"


def end(watch: Watch, service: subprocess.Popen[bytes]) -> None:
    """End the device by its own process's id, and then what started it."""
    for pid in watch.processes():
        os.kill(pid, 15)
    service.wait(30)


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    names = ("way", "runtime", "fl-tiny, MB", "in all, MB", "idle, MiB", "training, MiB", "resident, MiB h a day")
    names = (*names, "timer, MiB h a day")
    lines = ["| " + " | ".join(names) + " |\n", "| --- " * len(names) + "|\n"]
    for row in rows:
        cells = (row.way, row.runtime, row.own_mb, row.whole_mb, row.idle_mib, row.training_mib)
        lines.append("| " + " | ".join(map(str, (*cells, round(row.resident_mib_h), row.timer_mib_h))) + " |\n")
    return "".join(lines)


def main() -> None:
    """Measure the ways asked for; print JSON; with --write put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("way", nargs="*", choices=[*WAYS, []], help="all of them when none is named")
    parser.add_argument("--write", action="store_true", help="write the table into docs/install.md")
    args = parser.parse_args()
    rows = []
    work = ROOT / "build/footprint"  # not /tmp: roots hold device nodes
    for name in args.way or WAYS:
        print(f"footprint: {name}", file=sys.stderr, flush=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        rows.append(measure(name, work))
        print(json.dumps(asdict(rows[-1])), flush=True)
    shutil.rmtree(work, ignore_errors=True)
    if args.write:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        PAGE.write_text(before + BEGIN + table(rows) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
