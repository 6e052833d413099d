# SPDX-License-Identifier: Apache-2.0
"""Programs of the workstation that images are made with: found, named by their package, run; the only starter here."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from fl_tiny.errors import EnvironmentFault

PACKAGES = {
    "arch-test": "arch-test",
    "bmaptool": "bmap-tools",
    "dpkg-deb": "dpkg",
    "fdtget": "device-tree-compiler",
    "genimage": "genimage",
    "git": "git",
    "grub-mkimage": "grub-common",
    "mcopy": "mtools",
    "mdel": "mtools",
    "mdir": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "openssl": "openssl",
    "qemu-aarch64-static": "qemu-user-static",
    "rauc": "rauc",
    "tar": "tar",
    "unshare": "util-linux",
    "unsquashfs": "squashfs-tools",
    "xz": "xz-utils",
}
SHOWN = 12  # lines of a program's words that a fault shows


def demand(names: Iterable[str]) -> None:
    """Raises: EnvironmentFault that names every program that is not here, and its Debian package."""
    absent = [name for name in names if find(name) is None]
    if absent:
        packages = " ".join(sorted({PACKAGES[name] for name in absent}))
        raise EnvironmentFault(f"not installed: {', '.join(absent)}", hint=f"apt install {packages}")


def find(name: str) -> str | None:
    """Where a program is, also where a user's PATH has no sbin."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    return shutil.which(name, path=path)


def run(*words: object, env: Mapping[str, str] | None = None, log: Path | None = None) -> str:
    """What a program prints; with ``log`` its words go there. Raises: EnvironmentFault with its last lines."""
    name, *rest = map(str, words)
    demand([name] if name in PACKAGES else [])
    command = [find(name) or name, *rest]
    full = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    if log is not None:
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=full, check=False).returncode
        said = log.read_text(errors="replace")
        out = ""
    else:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", env=full, check=False)
        code, said, out = ended.returncode, ended.stderr + ended.stdout, ended.stdout
    if code != 0:
        last = " | ".join(said.strip().split("\n")[-SHOWN:])
        raise EnvironmentFault(f"{name} ended with {code}: {last}", hint=f"all of it is in {log}" if log else "")
    return out


def run_bytes(*words: object) -> bytes:
    """What a program writes. Raises: EnvironmentFault."""
    name, *rest = map(str, words)
    demand([name])
    ended = subprocess.run([find(name) or name, *rest], capture_output=True, check=False)
    if ended.returncode != 0:
        raise EnvironmentFault(f"{name} ended with {ended.returncode}: {ended.stderr.decode(errors='replace').strip()}")
    return ended.stdout


def succeeds(*words: object) -> bool:
    """Whether a program ends well; its words are of no interest."""
    name, *rest = map(str, words)
    demand([name])
    return subprocess.run([find(name) or name, *rest], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def piped(*words: object) -> Iterator[IO[bytes]]:
    """What a program writes, as it comes: for what is too much to be held. Raises: EnvironmentFault when it fails."""
    name, *rest = map(str, words)
    demand([name])
    with subprocess.Popen([find(name) or name, *rest], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout
        yield running.stdout
        while running.stdout.read(1 << 16):  # what nobody wanted
            pass
    if running.returncode != 0:
        raise EnvironmentFault(f"{name} ended with {running.returncode}")
