# SPDX-License-Identifier: Apache-2.0
"""An image booted in QEMU: its serial console, a shell over SSH by the provisioned key; ended by its process id."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fl_tiny.errors import EnvironmentFault
from fl_tiny.image import evidence

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build/boot"  # records of what was seen; scripts/boards --keep takes them into docs/evidence
FIRMWARE = Path("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd")
HOST = "10.0.2.2"  # this machine's loopback, as QEMU's user network shows it to the guest
PATIENCE_S = 600.0  # emulated, on a machine that others use too
NEEDED = ("qemu-system-aarch64", "ssh", "ssh-keygen", "mcopy", "genimage", "mmdebstrap")


def missing() -> str:
    """Why no image can be booted here; empty when one can."""
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if not FIRMWARE.exists():
        absent.append("qemu-efi-aarch64")
    return f"needs {', '.join(absent)}" if absent else ""


def build(board: str, out: Path, *options: object) -> dict[str, Any]:
    """The image of a board, by the project's own builder; what it made of the same inputs before is taken again.

    Of what the mirror has now: Debian's security updates are no fault of ours. Skips where no image can be made.
    """
    command = [
        "image",
        "build",
        board,
        "--out",
        out,
        "--packages",
        ROOT / "build/debs",
        *options,
        "--json",
    ]
    words = [sys.executable, "-m", "fl_tiny", *map(str, command)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=3600, check=False)
    if ended.returncode == EnvironmentFault.EXIT:
        pytest.skip(f"SKIPPED: no image can be made here: {ended.stderr[-1500:]}")
    assert ended.returncode == 0, f"image build: exit {ended.returncode}: {ended.stderr[-3000:]}"
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def run(name: str, *words: object, patience: float = 300.0) -> str:
    """What a program prints; it must end well."""
    command = [sys.executable, "-m", "fl_tiny"] if name == "fl-tiny" else [name]
    ended = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=patience, check=False)
    assert ended.returncode == 0, (
        f"{name} {words}: exit {ended.returncode}: {ended.stdout[-1500:]}{ended.stderr[-3000:]}"
    )
    return ended.stdout


def until(done: Callable[[], Any], what: str, patience: float = PATIENCE_S, pause: float = 1.0) -> Any:
    """What ``done`` returns once it is true."""
    end = time.monotonic() + patience
    while not (found := done()):
        assert time.monotonic() < end, f"no {what} in {patience:.0f} s"
        time.sleep(pause)
    return found


def free_port() -> int:
    """A TCP port of loopback that nobody had a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ssh_key(folder: Path) -> Path:
    """A key for the guests; its public half is ``.pub`` beside it."""
    key = folder / "id"
    if not key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", key)
    return key


def virt(disk: Path, memory_mib: int, writes: Path | None) -> list[str]:
    """QEMU's board for virtual machines, its UEFI included."""
    drive = ["-drive", f"if=none,id=d,format=raw,file={disk}"]
    if writes is not None:
        writes.touch()
        drive = ["-blockdev", f"driver=file,node-name=disk,filename={disk}"]
        drive += ["-blockdev", f"driver=file,node-name=writes,filename={writes}"]
        drive += ["-blockdev", "driver=blklogwrites,node-name=d,file=disk,log=writes,log-super-update-interval=1"]
    machine = ["-M", "virt", "-cpu", "cortex-a57", "-smp", "2", "-m", str(memory_mib), "-bios", str(FIRMWARE), *drive]
    machine += ["-device", "virtio-blk-pci,drive=d", "-device", "virtio-net-pci,netdev=n,romfile="]
    return [*machine, "-device", "virtio-rng-pci", "-device", "i6300esb"]


def raspi3b(disk: Path, pi: Path) -> list[str]:
    """QEMU's Raspberry Pi 3 with a card and no network, its second UART the console.

    A USB adapter is lost between U-Boot and Linux (dwc2, "Not connected"; QEMU 7.2).
    """
    first = ["-kernel", str(pi / "u-boot.bin"), "-dtb", str(pi / "bcm2837-rpi-3-b.dtb")]
    return ["-M", "raspi3b", *first, "-drive", f"if=sd,format=raw,file={disk}", "-serial", "null"]


def first_stages(image: Path, folder: Path) -> Path:
    """What the firmware of a Raspberry Pi 3 starts and hands over, off the image's FAT; QEMU stands in for it."""
    for name in ("u-boot.bin", "bcm2837-rpi-3-b.dtb"):
        run("mcopy", "-n", "-i", f"{image}@@4M", f"::{name}", folder / name)
    return folder


class Guest:
    """A board's disk in QEMU's virt machine. The disk is written to: give it a copy."""

    def __init__(
        self,
        disk: Path,
        key: Path,
        log: Path,
        memory_mib: int = 512,
        writes: Path | None = None,
        pi: Path | None = None,
    ) -> None:
        """log: the serial console's. writes: where all that is written to the disk is recorded, in order.

        pi: a Raspberry Pi 3 instead, with the first stages in that folder (``first_stages``).
        """
        self.disk, self.key, self.log = disk, key, log
        self.port = free_port()
        self.began = time.monotonic()
        network = ["-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{self.port}-:22"]
        machine = [*network, *virt(disk, memory_mib, writes)] if pi is None else raspi3b(disk, pi)
        words = ["qemu-system-aarch64", *machine, "-serial", f"file:{log}"]
        self.process = subprocess.Popen(
            [*words, "-display", "none", "-monitor", "none"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self) -> str:
        """The serial console so far, without colours and without what it says again while it waits."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        text = re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[M78=>]|\([A-Z])|\r", "", text)
        lines = [line.rstrip() for line in text.split("\n") if "start running (" not in line]
        return "\n".join(line for line in lines if line)

    def runs(self) -> None:
        """Fails the test when QEMU has ended."""
        if self.process.poll() is not None:
            assert self.process.stderr
            raise AssertionError(f"QEMU ended: {self.process.stderr.read()} {self.said()[-3000:]}")

    def waits_for(self, text: str, patience: float = PATIENCE_S) -> None:
        """Until the serial console has said ``text``."""

        def there() -> bool:
            self.runs()
            return text in self.said()

        try:
            until(there, f"{text!r} on the console", patience)
        except AssertionError as fault:
            raise AssertionError(f"{fault}: {self.said()[-4000:]}") from None

    def ready(self, patience: float = PATIENCE_S) -> float:
        """Until a command can be given over SSH; seconds since the start."""

        def answers() -> bool:
            self.runs()
            return self._ssh("true", patience=60)[0] == 0

        try:
            until(answers, "answer over SSH", patience, pause=3)
        except AssertionError as fault:
            raise AssertionError(f"{fault}: {self.said()[-4000:]}") from None
        return time.monotonic() - self.began

    def do(self, command: str, code: int | None = 0, patience: float = 120.0) -> str:
        """What a command prints in the guest, as root."""
        ended, out, err = self._ssh(command, patience)
        assert code is None or ended == code, f"{command}: exit {ended}: {out[-2000:]}{err[-2000:]}"
        return out

    def report(self, command: str, patience: float = 120.0) -> Any:
        """The JSON of a command of fl-tiny in the guest."""
        return json.loads(self.do(f"fl-tiny {command} --json", patience=patience))

    def elapsed(self) -> float:
        """Seconds since its power came on."""
        return time.monotonic() - self.began

    def put(self, source: Path, target: str, size: int = 0) -> None:
        """Copy a file into the guest; only its first ``size`` bytes, when they are said."""
        take = f"cat > {target}" if not size else f"head -c {size} > {target}; cat > /dev/null"
        with source.open("rb") as file:
            subprocess.run([*self._command(), take], stdin=file, check=True, timeout=900, capture_output=True)

    def starts(self, command: str) -> subprocess.Popen[str]:
        """A command in the guest that goes on beside the test."""
        return subprocess.Popen(
            [*self._command(), command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def fat(self, path: str) -> str:
        """A file of the FAT partition, read from outside."""
        return run("mcopy", "-n", "-i", f"{self.disk}@@4M", f"::{path}", "-")

    def off(self, patience: float = 180.0) -> None:
        """Shut down, as a person does who thinks of it."""
        self._ssh("systemctl --no-block poweroff", patience=60)
        try:
            self.process.wait(patience)
        finally:
            self.end()

    def end(self) -> None:
        """Pull the plug."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        if self.process.stderr:
            self.process.stderr.close()

    def _command(self) -> list[str]:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes")
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", *words, "-o", "ConnectTimeout=30", "-i", str(self.key), "-p", str(self.port), "root@127.0.0.1"]

    def _ssh(self, command: str, patience: float) -> tuple[int, str, str]:
        try:
            ended = subprocess.run(
                [*self._command(), command], capture_output=True, text=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            return 255, "", f"no answer in {patience:.0f} s"
        return ended.returncode, ended.stdout, ended.stderr


def keep(board: str, machine: str, said: dict[str, str], figures: dict[str, float]) -> None:
    """Put what was seen of a board into the record that `image verify` has left; a log beside it."""
    version = run("qemu-system-aarch64", "--version").split("\n")[0].split()[3]
    parts = [f"==== {title} ====\n{text}\n" for title, text in said.items()]
    (KEPT / f"{board}.log").write_text("\n".join(parts))
    path = KEPT / f"{board}.json"
    busy = f"emulated on {os.cpu_count()} cores at a load of {os.getloadavg()[2]:.0f}"
    changes = {"machine": f"QEMU {version}, {machine}, {busy}", "log": f"{board}.log", "figures": figures}
    evidence.write(replace(evidence.read(path), **changes), path)


def copy(image: Path, target: Path, mib: int = 0) -> Path:
    """A disk of an image, sparse; larger when asked, as a card is."""
    subprocess.run(["cp", "--sparse=always", image, target], check=True, timeout=120)
    if mib:
        os.truncate(target, mib << 20)
    return target
