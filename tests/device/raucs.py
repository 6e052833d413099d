# SPDX-License-Identifier: Apache-2.0
"""A board with slots that are files, with a real RAUC service on a message bus of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fl_tiny.device.bootfiles import PLACES, TRIED

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "image/templates"
BOARD = "fl-tiny-test"
TOOLS = ("rauc", "dbus-daemon", "mksquashfs", "openssl")
PATIENCE_S = 60.0


def missing() -> str:
    """Why there can be no such board here; empty when there can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        absent.append("root")
    return f"needs {', '.join(absent)}" if absent else ""


@dataclass(frozen=True, slots=True)
class Board:
    """root: the board's files; folder: where slots and keys lie beside it."""

    folder: Path
    root: Path
    environment: dict[str, str]

    @property
    def slot_b(self) -> Path:
        """The slot that does not run."""
        return self.folder / "slotB"

    def run(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`fl-tiny device …` on the board."""
        return self.command(sys.executable, "-m", "fl_tiny", "device", *words, "--root", self.root, code=code)

    def command(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Any command with the board's message bus."""
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=PATIENCE_S, env=self.environment, check=False
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done

    def runs(self, slot: str, release: str) -> None:
        """A start of the machine: this slot with this release."""
        (self.root / "proc/cmdline").write_text(f"quiet rauc.slot={slot} panic=10\n")
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"{time.monotonic_ns()}\n")
        (self.root / "etc/fl-tiny-release").write_text(f"COMPATIBLE={BOARD}\nRELEASE={release}\n")


def make_keys(folder: Path) -> Path:
    """A fleet's CA and signer, as an operator makes them."""
    subprocess.run([ROOT / "scripts/update-keys", folder], check=True, timeout=PATIENCE_S, capture_output=True)
    return folder


def make_bundle(
    folder: Path, keys: Path, release: str, *, board: str = BOARD, form: str = "plain", names: bool = True
) -> Path:
    """A signed bundle with a root of noise. form: this kernel may lack what verity bundles are mounted with."""
    content = folder / f"content-{release}-{board}-{form}"
    content.mkdir()
    (content / "noise").write_bytes(os.urandom(200_000))
    squash = ["mksquashfs", content / "noise", content / "root.squashfs", "-quiet", "-no-progress"]
    subprocess.run(squash, check=True, timeout=PATIENCE_S, capture_output=True)
    (content / "noise").unlink()
    if names:
        (content / "fl-tiny-release").write_text(f"COMPATIBLE={board}\nRELEASE={release}\n")
    (content / "manifest.raucm").write_text(
        f"[update]\ncompatible={board}\nversion={release}\n\n[bundle]\nformat={form}\n\n"
        "[image.rootfs]\nfilename=root.squashfs\n"
    )
    made = folder / f"{content.name}.raucb"
    signer = ["--cert", keys / "update-signer.pem", "--key", keys / "update-signer.key"]
    command = ["rauc", "bundle", *signer, "--keyring", keys / "update-ca.pem", content, made]
    subprocess.run(command, check=True, timeout=PATIENCE_S, capture_output=True)
    return made


def make_board(folder: Path, keys: Path) -> Board:
    """A board that runs release 2 from slot A, as the image's templates set it up."""
    root = folder / "root"
    for name in (*PLACES, TRIED):
        (root / "boot" / name).parent.mkdir(parents=True)
        shutil.copy(TEMPLATES / name, root / "boot" / name)
    for name in ("etc/rauc", "proc/sys/kernel/random", "var/lib/fl-tiny"):
        (root / name).mkdir(parents=True)
    for name in ("slotA", "slotB"):
        (folder / name).write_bytes(bytes(1 << 20))
    shutil.copy(keys / "update-ca.pem", root / "etc/rauc/keyring.pem")
    text = (TEMPLATES / "rauc-system.conf").read_text()
    paths = {"@COMPATIBLE@": BOARD, "@SLOT_A@": f"{folder}/slotA", "@SLOT_B@": f"{folder}/slotB"}
    paths |= {"/etc/rauc/": f"{root}/etc/rauc/", "/run/rauc": f"{folder}/mount", "/usr/lib/fl-tiny/rauc": str(folder)}
    paths |= {"/var/lib/fl-tiny": f"{root}/var/lib/fl-tiny", "=verity": "=plain verity"}
    for old, new in paths.items():
        text = text.replace(old, new)
    (root / "etc/rauc/system.conf").write_text(text)
    (root / "var/lib/fl-tiny/update").mkdir()
    for name in ("bootloader", "pre-install"):
        script = (ROOT / "deploy/rauc" / name).read_text()
        script = script.replace("/usr/bin/fl-tiny", f"{sys.executable} -m fl_tiny")
        (folder / name).write_text(
            script.replace('"$@"', f'"$@" --root {root}').replace('release"', f'release" --root {root}')
        )
        (folder / name).chmod(0o755)
    bus = f"unix:path={folder}/bus"
    board = Board(folder, root, {**os.environ, "PYTHONPATH": str(ROOT), "DBUS_SYSTEM_BUS_ADDRESS": bus})
    board.runs("A", "2")
    return board


@contextlib.contextmanager
def serving(board: Board, slot: str = "A") -> Iterator[None]:
    """RAUC's service within the block."""
    address = board.environment["DBUS_SYSTEM_BUS_ADDRESS"]
    bus = ["dbus-daemon", "--session", f"--address={address}", "--nofork", "--print-address"]
    service = ["rauc", f"--conf={board.root}/etc/rauc/system.conf", f"--override-boot-slot={slot}", "service"]
    quiet = {"stderr": subprocess.DEVNULL, "env": board.environment}
    with subprocess.Popen(bus, stdout=subprocess.PIPE, **quiet) as daemon:  # type: ignore[call-overload]
        try:
            assert daemon.stdout.readline()
            with subprocess.Popen(service, stdout=subprocess.DEVNULL, **quiet) as rauc:  # type: ignore[call-overload]
                try:
                    ask = ["rauc", "status", "--output-format=json"]
                    end = time.monotonic() + PATIENCE_S
                    while subprocess.run(ask, capture_output=True, env=board.environment, check=False).returncode:
                        assert time.monotonic() < end, "RAUC's service does not come"
                    yield
                finally:
                    rauc.terminate()
                    rauc.wait(PATIENCE_S)
        finally:
            daemon.terminate()
            daemon.wait(PATIENCE_S)
